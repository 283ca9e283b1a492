from gan_mask.harden import main

main()
