from gan_mask.evaluation import main

main()
