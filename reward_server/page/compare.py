"""The tab that compares two typed reports.

Contract: report text goes from the browser to the source and back, to no log and no file. What can't be scored is a
message in the place of the result.
"""

from __future__ import annotations

from typing import Final

import gradio as gr

from reward_server.errors import PairError, RewardError
from reward_server.gallery import CASES, hacks
from reward_server.page import render
from reward_server.page.serving import OneThread, TookTooLongError
from reward_server.scorer import Description
from reward_server.scoring import Source

LONGEST: Final = 16_000
"""Characters of a report, as many as a server takes."""
_EXAMPLES: Final = ("paraphrase", "sides swapped", "negation flipped", "other patient", "normal template")


class Comparison:
    """What the button does."""

    def __init__(self, source: Source, thread: OneThread) -> None:
        """Asks the source what it is; raises RewardError if it does not say."""
        self._source, self._thread = source, thread
        self.about: Description = thread.run(source.describe)

    def __call__(self, reference: str, hypothesis: str) -> str:
        """The result as HTML."""
        if not reference.strip():
            return render.problem("The reference is empty: type the report that the other is judged by.")
        for name, text in (("reference", reference), ("hypothesis", hypothesis)):
            if len(text) > LONGEST:
                return render.problem(f"The {name} has {len(text)} characters; the most are {LONGEST}.")
        try:
            return self._thread.run(lambda: self._compare(reference, hypothesis))
        except (RewardError, TookTooLongError) as error:
            return render.problem(str(error))

    def _compare(self, reference: str, hypothesis: str) -> str:
        pair = (reference, hypothesis)
        (answer,) = self._source.submit_each([pair]).result()
        if isinstance(answer, PairError):
            raise answer
        (found,) = self._source.explain([pair])
        return render.result(self.about, pair, answer, found)


def compare_tab(compare: Comparison) -> None:
    """Adds the tab's content to the page that is being built."""
    gr.HTML(render.backend_line(compare.about))
    with gr.Row():
        reference = gr.Textbox(
            label="Reference: what the radiologist wrote", lines=7, min_width=320, elem_id="reference"
        )
        hypothesis = gr.Textbox(label="Hypothesis: the report to judge", lines=7, min_width=320, elem_id="hypothesis")
    button = gr.Button("Compare", variant="primary", elem_id="compare")
    written = hacks(CASES[0])
    gr.Examples(
        [[CASES[0].reference, written[name]] for name in _EXAMPLES],
        [reference, hypothesis],
        label="Invented examples",
        example_labels=list(_EXAMPLES),
        cache_examples=False,
        api_visibility="private",
    )
    shown = gr.HTML(elem_id="result")
    button.click(compare, [reference, hypothesis], shown, api_visibility="private", concurrency_limit=1)
