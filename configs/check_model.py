"""Rules for the model's part of a configuration (`configs.check`)."""

from __future__ import annotations

from collections.abc import Iterator

from configs.schema import Config, LoRAConfig, ModelConfig, PromptConfig


def check_model(cfg: Config) -> Iterator[str]:
    """The broken rules of `cfg.model`, each as a line that says what to do."""
    model, rollout = cfg.model, cfg.rollout
    if model.llm.train not in ("full", "lora"):
        yield f"model.llm.train={model.llm.train}: full or lora"
    if model.backbone.train not in ("frozen", "full", "lora"):
        yield f"model.backbone.train={model.backbone.train}: frozen, full or lora"
    if model.llm.broadcast not in ("merged", "adapter"):
        yield f"model.llm.broadcast={model.llm.broadcast}: merged or adapter"
    elif model.llm.broadcast == "adapter" and model.llm.train != "lora":
        yield "model.llm.broadcast=adapter without model.llm.train=lora: there is no adapter to send"
    for name, lora in {"llm": model.llm.lora, "backbone": model.backbone.lora}.items():
        yield from _lora(name, lora)
    yield from _extractor(model)
    if not model.regions and model.global_tokens == 0:
        yield "model.regions=off with model.global_tokens=0: the language model would see nothing of the image"
    if rollout.tensor_parallel > 1 and rollout.gpus_per_actor != rollout.tensor_parallel:
        yield (
            f"rollout.tensor_parallel={rollout.tensor_parallel} needs rollout.gpus_per_actor={rollout.tensor_parallel} "
            f"(it is {rollout.gpus_per_actor:g})"
        )
    yield from _prompt(model.prompt)


def _lora(name: str, lora: LoRAConfig) -> Iterator[str]:
    if lora.rank <= 0:
        yield f"model.{name}.lora.rank={lora.rank}: must be above 0 (full training is model.{name}.train=full)"
    if lora.alpha <= 0:
        yield f"model.{name}.lora.alpha={lora.alpha:g}: must be above 0, the adapters are scaled by alpha / rank"
    if not 0 <= lora.dropout <= 1:
        yield f"model.{name}.lora.dropout={lora.dropout:g}: must be a share between 0 and 1"


def _extractor(model: ModelConfig) -> Iterator[str]:
    for name, value in {
        "extractor_size": model.extractor_size,
        "extractor_heads": model.extractor_heads,
        "extractor_layers": model.extractor_layers,
    }.items():
        if value <= 0:
            yield f"model.{name}={value}: must be above 0"
    if model.extractor_heads > 0 and model.extractor_size % model.extractor_heads:
        yield (
            f"model.extractor_size={model.extractor_size} is not divisible by model.extractor_heads="
            f"{model.extractor_heads}: set one of them so that every head has the same width"
        )
    if model.global_tokens < 0:
        yield f"model.global_tokens={model.global_tokens}: must not be below 0 (0 leaves them out)"


def _prompt(prompt: PromptConfig) -> Iterator[str]:
    for name, text, count in (
        ("template", prompt.template, prompt.template.count("{images}")),
        *((name, text, text.count("{text}")) for name, text in _context_parts(prompt).items()),
    ):
        if count != 1:
            wanted = "{images}" if name == "template" else "{text}"
            yield f"model.prompt.{name}={text!r}: must hold {wanted} exactly once"
    if prompt.max_context_tokens <= 0:
        yield (
            f"model.prompt.max_context_tokens={prompt.max_context_tokens}: must be above 0 "
            "(model.prompt.context=[] leaves the context out)"
        )
    for name in prompt.context:
        if name not in _context_parts(prompt):
            yield f"model.prompt.context has {name!r}: it may hold {', '.join(_context_parts(prompt))}"
    if prompt.context and "{context}" not in prompt.template:
        yield "model.prompt.context is set, and model.prompt.template has no {context}: add it, or empty the list"


def _context_parts(prompt: PromptConfig) -> dict[str, str]:
    return {"views": prompt.views, "indication": prompt.indication, "comparison": prompt.comparison}
