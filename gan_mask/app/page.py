"""The page: what it looks like, and what its buttons do."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from gan_mask import html, templates
from gan_mask.app.studio import WAYS, Choice, Studio, Trial
from gan_mask.errors import GanMaskError
from gan_mask.sampling.masker import Row
from gan_mask.sampling.verdicts import OUTCOMES, WORKED, Verdict, outcome, verdicts

FONTS = ["system-ui", "Segoe UI", "Roboto", "sans-serif"]  # the visitor's own: none is loaded from elsewhere
MONO = ["ui-monospace", "Menlo", "Consolas", "monospace"]
CARD = 512  # pixels: longest side of a face in the comparison
VIEWS = ("Largest face", "Whole photo")
NETWORKS = "networks"  # what may be used by one visitor at a time
LABELS = [way.label for way in WAYS]
COMPARED = [way.label for way in WAYS if way.label.startswith(("Generator", "DM", "Plain"))]
NOTHING = "Drop a photo first, or take one with the camera."
PLACEMENTS = [("Seamless: cloned into the face", "seamless"), ("Laid over, as in the paper", "paper")]
MATCH = [("Nearest to the wearer", "match"), ("Random face", "random")]
INTRODUCTION = """<h1>gan_mask</h1>
<p>A mask that shows another face, made so that detectors report no mask, and recognisers do not find its wearer.
Try it on a photo of somebody who has agreed. The photo stays on this machine.</p>"""


def photo_input(label: str, name: str, sources: Sequence[str], height: int) -> gr.Image:
    """A photo as the path of the file that was uploaded: not decoded by Gradio, so that we can say what is wrong."""
    image = gr.Image(
        label=label, sources=[*sources], type="filepath", image_mode=None, height=height, buttons=[], elem_id=name
    )
    image.preprocess = lambda payload: payload.path if payload else None
    return image


def build(studio: Studio, examples: Sequence[Path]) -> gr.Blocks:
    """The page; `launch` it with `look()`."""
    with gr.Blocks(title="gan_mask", analytics_enabled=False, delete_cache=(600, 3600)) as page:
        gr.HTML(INTRODUCTION, elem_classes="introduction", padding=False)
        with gr.Row(elem_classes="columns"):
            with gr.Column(scale=5, min_width=320):
                photo = photo_input("Photo", "photo", ["upload", "webcam", "clipboard"], 300)
                gr.Examples([[str(path)] for path in examples], [photo], label="Or one of these synthetic people")
                way = gr.Dropdown(LABELS, value=LABELS[0], label="Method", elem_id="method")
                template = gr.Dropdown(
                    MATCH + [(name, name) for name in templates.names()], value="match", label="What the mask shows",
                    elem_id="template",
                )  # fmt: skip
                placement = gr.Radio(
                    PLACEMENTS, value="seamless", label="Placement", interactive=False, elem_id="placement",
                    info="The generator has its own; plain masks are laid over.",
                )  # fmt: skip
                with gr.Accordion("More", open=False):
                    own = photo_input("A photo whose lower face the mask shows", "own", ["upload"], 180)
                    steps = gr.Slider(
                        1, 100, 10, step=1, label="Gradient steps", elem_id="steps",
                        info="Of refined and optimised methods; the paper's take 100.",
                    )  # fmt: skip
                    seed = gr.Number(0, label="Seed", precision=0, minimum=0, maximum=2**32 - 1, elem_id="seed")
                mask = gr.Button("Mask the photo", variant="primary", elem_id="mask")
            with gr.Column(scale=7, min_width=320), gr.Tabs():
                with gr.Tab("Before, after"):
                    pictures = gr.State()
                    view = gr.Radio(VIEWS, value=VIEWS[0], show_label=False, container=False, elem_id="view")
                    slider = gr.ImageSlider(
                        label="Before and after", type="filepath", interactive=False, max_height=620,
                        buttons=["fullscreen"], elem_id="slider", show_label=False,
                    )  # fmt: skip
                    told = gr.HTML(message("The masked photo appears here."), elem_id="told", padding=False)
                    download = gr.DownloadButton(
                        "Download the masked photo, marked as synthetic", visible=False, elem_id="download"
                    )
                with gr.Tab("Compare"):
                    compared = gr.CheckboxGroup(LABELS, value=COMPARED, label="Methods", elem_id="compared")
                    compare = gr.Button("Compare them on this photo", elem_id="compare")
                    cards = gr.HTML(
                        message("The largest face appears here, once for each method."), elem_id="cards", padding=False
                    )
        gr.HTML(explanation(studio), elem_classes="explanation", padding=False)

        way.change(
            lambda label: gr.update(interactive=_way(label).has_placement), way, placement, show_progress="hidden",
            api_visibility="private",
        )  # fmt: skip
        view.change(
            lambda shown, of: of and of[shown],
            [view, pictures],
            slider,
            show_progress="hidden",
            api_visibility="private",
        )
        settings = [template, placement, own, steps, seed]
        mask.click(
            functools.partial(show_one, studio), [photo, way, *settings, view], [slider, told, download, pictures],
            concurrency_limit=1, concurrency_id=NETWORKS, api_visibility="private",
        )  # fmt: skip
        compare.click(
            functools.partial(show_several, studio), [photo, compared, *settings], cards,
            concurrency_limit=1, concurrency_id=NETWORKS, api_visibility="private",
        )  # fmt: skip
    return page


def look() -> dict[str, Any]:
    """Of `launch`: fonts, colours and style."""
    theme = gr.themes.Base(
        primary_hue="sky", neutral_hue="slate", radius_size="lg", font=FONTS, font_mono=MONO
    ).set(
        body_background_fill="#f7f8fa", body_background_fill_dark="#12161b", block_shadow="none",
        button_primary_background_fill="#0065a0", button_primary_background_fill_hover="#00527f",
        button_primary_background_fill_dark="#0065a0", button_primary_text_color="#fff",
        body_text_color_subdued="#566273", body_text_color_subdued_dark="#a3aebd",
        block_info_text_color="#566273", block_label_text_color="#566273", block_title_text_color="#344054",
    )  # fmt: skip
    return {"theme": theme, "css_paths": [html.TEMPLATES / "verdicts.css", html.TEMPLATES / "app.css"]}


def _way(label: str) -> Any:
    return WAYS[LABELS.index(label)]


def show_one(
    studio: Studio, photo: str | None, label: str, template: str, placement: Any, own: str | None, steps: int,
    seed: int, view: str,
) -> tuple[Any, str, Any, Any]:  # fmt: skip
    """Slider, verdicts, download and pictures of a photo masked in one way; or what is wrong, in their place."""
    try:
        trial = masked(studio, photo, label, template, placement, own, steps, seed)
    except GanMaskError as error:
        return None, message(str(error), wrong=True), gr.update(visible=False), None
    told = html.render(
        "trial.html", summary=summary(trial.rows), note=cost(trial), faces=list(map(described, trial.rows))
    )
    pictures = dict(zip(VIEWS, (tuple(map(str, pair)) for pair in (trial.face, trial.photo)), strict=True))
    return pictures[view], told, gr.update(value=str(trial.file), visible=True), pictures


def show_several(studio: Studio, photo: str | None, labels: Sequence[str], *settings: Any) -> Iterator[str]:
    """The cards of the comparison, once more after each method."""
    cards: list[dict[str, Any]] = []
    if not labels:
        yield message("Choose the methods to compare first.", wrong=True)
    for number, label in enumerate(label for label in LABELS if label in labels):
        try:
            trial = masked(studio, photo, label, *settings)
        except GanMaskError as error:
            yield message(str(error), wrong=True)
            return
        if not cards:
            cards.append(card("Unmasked", trial.face[0], [], ""))
        lost = "" if trial.rows[0]["face_found_after"] else " No face is found any more."
        cards.append(card(label, trial.face[1], verdicts(trial.rows[0]), cost(trial) + lost))
        left = len(labels) - number - 1
        yield html.render("comparison.html", cards=cards) + (message(f"{left} more ...") if left else "")


def masked(
    studio: Studio, photo: str | None, label: str, template: str, placement: Any, own: str | None, steps: int, seed: int
) -> Trial:
    if photo is None:
        raise GanMaskError(NOTHING)
    return studio.mask(Path(photo), Choice(_way(label), own or template, placement, int(steps), int(seed or 0)))


def card(title: str, face: Path, found: Sequence[Verdict], note: str) -> dict[str, Any]:
    with Image.open(face) as picture:
        shown = html.data_uri(picture, CARD)
    return {"title": title, "picture": shown, "alt": f"The largest face, {title}", "verdicts": found, "note": note}


def described(row: Row) -> dict[str, Any]:
    return {"title": f"Face {int(row['face']) + 1}", "verdicts": verdicts(row), "lost": not row["face_found_after"]}


def summary(rows: Sequence[Row]) -> str:
    """What happened, in one line."""
    happened = [outcome(row) for row in rows]
    if len(rows) == 1:
        return {WORKED: "Not recognised, and no mask reported"}.get(happened[0], happened[0].capitalize())
    counts = [(happened.count(name), name) for name in OUTCOMES]
    return f"{len(rows)} faces: " + ", ".join(f"{name} {count}" for count, name in counts if count)


def cost(trial: Trial) -> str:
    shown = ", ".join(dict.fromkeys(str(row["template"]) for row in trial.rows))
    steps = f", {trial.rows[0]['iterations']} steps" if "iterations" in trial.rows[0] else ""
    return f"Shows {shown}; {trial.seconds:.1f} s{steps}."


def message(text: str, wrong: bool = False) -> str:
    return html.render("message.html", text=text, wrong=wrong)


def explanation(studio: Studio) -> str:
    return html.render("explanation.html", embedders=studio.c.embedders, detectors=studio.c.detectors)
