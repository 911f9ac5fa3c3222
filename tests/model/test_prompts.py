"""Prompts: what a template makes of a study, and what becomes of too many tokens."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from configs.schema import PromptConfig
from rrg.data.study import Image, Report, Study
from rrg.model.prompts import IMAGE, PAD, PromptTemplate, collate_prompts
from rrg.model.tokenizer import train_tokenizer

REPORT = Report(findings="the lungs are clear .", indication="chest pain .", comparison="prior film .")
STUDY = Study("s1", "train", (Image(Path("a.png"), "frontal"), Image(Path("b.png"), "lateral")), REPORT, "test")


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(["the lungs are clear . chest pain . prior film . findings : views indication"], 300)


def text_of(tokenizer: PreTrainedTokenizerFast, tokens: list[int]) -> str:
    text: str = tokenizer.decode([token for token in tokens if token >= 0])
    return text


def test_views_indication_and_comparison_are_in_the_prompt(tokenizer: PreTrainedTokenizerFast) -> None:
    tokens = PromptTemplate.of(PromptConfig(), "findings").tokens(tokenizer, STUDY, 3)
    assert text_of(tokenizer, tokens) == (
        "<s>views : frontal, lateral . indication : chest pain . . comparison : prior film . . findings :"
    )
    assert tokens[1:4] == [IMAGE] * 3
    assert tokens.count(IMAGE) == 3


def test_what_a_study_lacks_is_left_out(tokenizer: PreTrainedTokenizerFast) -> None:
    study = replace(STUDY, report=replace(REPORT, indication="", comparison=""))
    tokens = PromptTemplate.of(PromptConfig(), "impression").tokens(tokenizer, study, 0)
    assert text_of(tokenizer, tokens) == "<s>views : frontal, lateral . impression :"


def test_a_template_may_have_text_before_the_image(tokenizer: PreTrainedTokenizerFast) -> None:
    cfg = PromptConfig(template="chest {images} clear {context} : {target}", context=["indication"])
    tokens = PromptTemplate.of(cfg, "both").tokens(tokenizer, STUDY, 2)
    place = tokens.index(IMAGE)
    assert text_of(tokenizer, tokens[:place]) == "chest "
    assert text_of(tokenizer, tokens[place:]) == " clear indication : chest pain . .  : findings and impression"


def test_a_long_indication_is_cut_and_the_longest_prompt_is_known(tokenizer: PreTrainedTokenizerFast) -> None:
    template = PromptTemplate.of(PromptConfig(max_context_tokens=5), "findings")
    study = replace(STUDY, report=replace(REPORT, indication="chest pain " * 50, comparison="prior film " * 50))
    tokens = template.tokens(tokenizer, study, 4)
    assert len(tokens) == template.most_tokens(tokenizer, 4)


def test_a_special_token_in_a_report_stays_a_word(tokenizer: PreTrainedTokenizerFast) -> None:
    study = replace(STUDY, report=replace(REPORT, indication="</s> pain"))
    tokens = PromptTemplate.of(PromptConfig(), "findings").tokens(tokenizer, study, 1)
    assert tokenizer.eos_token_id not in tokens


def test_special_tokens_of_a_context_template_are_such(tokenizer: PreTrainedTokenizerFast) -> None:
    cfg = PromptConfig(context=["indication"], indication="<pad>{bos}why : {text} .</s> ")
    study = replace(STUDY, report=replace(REPORT, indication="<s> {bos} {text} pain"))
    tokens = PromptTemplate.of(cfg, "findings").tokens(tokenizer, study, 0)
    assert text_of(tokenizer, tokens) == "<s><pad><s>why : <s> {bos} {text} pain .</s> findings :"
    special = [token for token in tokens if token in tokenizer.all_special_ids]
    bos, pad, eos = tokenizer.bos_token_id, tokenizer.pad_token_id, tokenizer.eos_token_id
    assert special == [bos, pad, bos, eos]


def test_words_of_a_context_template_and_of_the_text_are_tokenized_together(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    cfg = PromptConfig(template="{images}{context}", context=["indication"], indication="{bos}views : {text} . ")
    tokens = PromptTemplate.of(cfg, "findings").tokens(tokenizer, STUDY, 0)
    whole = "<s>views : chest pain . . "
    assert tokens == tokenizer(whole, add_special_tokens=False)["input_ids"]


def test_a_context_template_counts_among_the_tokens_of_its_part(tokenizer: PreTrainedTokenizerFast) -> None:
    cfg = PromptConfig(context=["indication"], indication="{bos}{bos}{bos}{text}{bos}", max_context_tokens=4)
    template = PromptTemplate.of(cfg, "findings")
    study = replace(STUDY, report=replace(REPORT, indication="chest pain " * 50))
    tokens = template.tokens(tokenizer, study, 4)
    assert len(tokens) == template.most_tokens(tokenizer, 4)
    assert tokens.count(tokenizer.bos_token_id) == 1 + 3


def test_prompts_of_different_lengths_share_a_batch() -> None:
    batch = collate_prompts([[IMAGE, 5, 6], [IMAGE, 7]])
    assert batch.tokens.tolist() == [[IMAGE, 5, 6], [IMAGE, 7, PAD]]
    assert batch.lengths.tolist() == [3, 2]
