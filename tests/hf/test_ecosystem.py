"""What stands around a model: tokenizers, pipelines, Trainer, files, torch.compile, threads."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import transformers
from transformers import GenerationConfig

import dynkern
from dynkern.hf import modeling
from support.checkpoint import SENTENCES, save_checkpoint
from support.opt import random_prompts
from support.twins import padded, twins

TEXTS = ["Today is a beautiful day", "the river", "what is the capital of France? the capital"]
pytestmark = pytest.mark.filterwarnings("ignore:Using the model-agnostic default")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save_checkpoint(tmp_path_factory.mktemp("model"), num_layers=4, init_std=0.3)


@pytest.fixture(scope="module")
def pair(checkpoint):
    theirs = transformers.OPTForCausalLM.from_pretrained(checkpoint)
    return theirs, dynkern.OPTForCausalLM.from_pretrained(checkpoint)


@pytest.fixture
def on_engine(monkeypatch):
    """transformers' own loop may not be taken by the drop-in."""
    refuse = lambda *a: pytest.fail("fell back")  # noqa: E731
    monkeypatch.setattr(modeling.OPTForCausalLM, "_leave_to_transformers", refuse)


# -- tokenizers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["full", "uniform:2"])
def test_padding_sides(checkpoint, pair, policy, on_engine):
    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint)
    texts = {}
    for side in ("left", "right"):
        tokenizer.padding_side = side
        inputs = tokenizer(TEXTS, return_tensors="pt", padding=True)
        inputs.pop("token_type_ids", None)
        width = inputs["input_ids"].shape[1]
        ids = pair[1].generate(**inputs, policy=policy, max_new_tokens=8)
        assert torch.equal(ids[:, :width], inputs["input_ids"])
        texts[side] = ids[:, width:].tolist()
        if (side, policy) == ("left", "full"):
            assert torch.equal(ids, pair[0].generate(**inputs, max_new_tokens=8))
    assert texts["left"] == texts["right"]
    alone = [
        pair[1]
        .generate(tokenizer(t, return_tensors="pt")["input_ids"], policy=policy, max_new_tokens=8)[
            0, -8:
        ]
        .tolist()
        for t in TEXTS
    ]
    assert texts["left"] == alone


def test_no_warning_about_right_padding(pair, caplog):
    inputs = padded(random_prompts(3, seed=2), side="right")
    transformers.logging.enable_propagation()
    try:
        pair[1].generate(**inputs, max_new_tokens=2)
        assert "right-padding" not in caplog.text
        pair[0].generate(**inputs, max_new_tokens=2)
        assert "right-padding" in caplog.text
    finally:
        transformers.logging.disable_propagation()


# -- pipelines -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        {"do_sample": False},
        {"do_sample": False, "batch_size": 2},
        {"do_sample": False, "return_full_text": False, "repetition_penalty": 1.2},
        {"do_sample": False, "stop_sequence": "e"},
        {"do_sample": True, "min_p": 0.1, "num_return_sequences": 2},
    ],
    ids=str,
)
def test_pipelines(checkpoint, pair, settings, on_engine):
    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint, padding_side="left")
    results = []
    for module in pair:
        pipe = transformers.pipeline("text-generation", model=module, tokenizer=tokenizer)
        transformers.set_seed(4)
        results.append(pipe(list(TEXTS), max_new_tokens=8, **settings))
    assert results[1] == results[0]
    assert all(answer["generated_text"] for answers in results[1] for answer in answers)


def test_pipelines_under_a_policy(checkpoint, pair, on_engine):
    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint, padding_side="left")
    pipe = transformers.pipeline("text-generation", model=pair[1], tokenizer=tokenizer)
    settings = {"do_sample": False, "max_new_tokens": 8, "return_full_text": False}
    routed = pipe(TEXTS[0], policy="uniform:2", **settings)[0]["generated_text"]
    assert routed != pipe(TEXTS[0], **settings)[0]["generated_text"]
    ids = tokenizer(TEXTS[0], return_tensors="pt")["input_ids"]
    want = pair[1].generate(ids, policy="uniform:2", max_new_tokens=8)[0, ids.shape[1] :]
    assert routed == tokenizer.decode(want, skip_special_tokens=True)
    # a pipeline's own empty prompt is a row of BOS
    assert pipe("", policy="uniform:2", **settings)[0]["generated_text"]


def test_a_pipeline_of_a_freed_model(checkpoint):
    model = transformers.AutoModelForCausalLM.from_pretrained(checkpoint)
    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint)
    settings = {"do_sample": False, "max_new_tokens": 8}
    pipe = transformers.pipeline("text-generation", model=model, tokenizer=tokenizer)
    want = pipe(TEXTS[0], **settings)
    freed = dynkern.accelerate(model, free_parameters=True)
    pipe = transformers.pipeline("text-generation", model=freed, tokenizer=tokenizer)
    assert pipe(TEXTS[0], **settings) == want


def test_text_streams(checkpoint, pair, on_engine):
    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint)
    ids = tokenizer(TEXTS[0], return_tensors="pt")["input_ids"]
    for settings in ({}, {"policy": "uniform:2"}, {"policy": "uniform:2", "bad_words_ids": [[9]]}):
        streamer = transformers.TextIteratorStreamer(tokenizer, skip_prompt=True, timeout=20)
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(
                pair[1].generate, ids, streamer=streamer, max_new_tokens=8, **settings
            )
            text = "".join(streamer)
        assert text == tokenizer.decode(running.result()[0, ids.shape[1] :])


# -- files -----------------------------------------------------------------------------------------


def test_generation_config_files(checkpoint, tmp_path, on_engine):
    theirs = transformers.OPTForCausalLM.from_pretrained(checkpoint)
    config = GenerationConfig(
        max_new_tokens=7,
        repetition_penalty=1.4,
        no_repeat_ngram_size=2,
        eos_token_id=[2, 77],
        pad_token_id=1,
        bos_token_id=2,
        suppress_tokens=[30],
    )
    theirs.generation_config = config
    theirs.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "generation_config.json").read_text())["max_new_tokens"] == 7
    ours = dynkern.OPTForCausalLM.from_pretrained(tmp_path)
    inputs = padded(random_prompts(3, seed=4, vocab_size=320))
    got = ours.generate(**inputs)
    assert torch.equal(got, theirs.generate(**inputs))
    assert got.shape[1] <= inputs["input_ids"].shape[1] + 7
    routed = ours.generate(**inputs, policy="uniform:2")
    assert not torch.equal(routed, got)
    # and on to transformers again
    again = tmp_path / "again"
    ours.save_pretrained(again)
    back = transformers.AutoModelForCausalLM.from_pretrained(again)
    assert type(back) is transformers.OPTForCausalLM
    assert torch.equal(back.generate(**inputs), got)
    loaded = GenerationConfig.from_pretrained(again)
    assert torch.equal(ours.generate(**inputs, generation_config=loaded), got)
    assert json.loads((again / "config.json").read_text())["architectures"] == ["OPTForCausalLM"]


# -- training --------------------------------------------------------------------------------------


def test_trainer(checkpoint, tmp_path):
    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint)
    examples = [{"input_ids": tokenizer(t)["input_ids"]} for t in SENTENCES * 2]
    trained = []
    for kind in (transformers.OPTForCausalLM, dynkern.OPTForCausalLM):
        model = kind.from_pretrained(checkpoint)
        inputs = padded(random_prompts(3, seed=4, vocab_size=320))
        before = model.generate(**inputs, max_new_tokens=6)
        arguments = transformers.TrainingArguments(
            output_dir=str(tmp_path / kind.__module__),
            max_steps=3,
            learning_rate=0.5,
            per_device_train_batch_size=4,
            report_to=[],
            use_cpu=True,
            seed=3,
            save_steps=3,
            disable_tqdm=True,
            optim="sgd",
        )
        collate = transformers.DataCollatorForLanguageModeling(tokenizer, mlm=False)
        trainer = transformers.Trainer(
            model=model, args=arguments, train_dataset=examples, data_collator=collate
        )
        trainer.train()
        # transformers' own generate would drop out in training mode, where the Trainer leaves it
        after = model.eval().generate(**inputs, max_new_tokens=6)
        assert not torch.equal(after, before)
        saved = kind.from_pretrained(tmp_path / kind.__module__ / "checkpoint-3")
        assert torch.equal(saved.generate(**inputs, max_new_tokens=6), after)
        trained.append((model, after))
    (theirs, ids), (ours, got) = trained
    assert torch.equal(got, ids)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(a, b)


# -- torch.compile and threads ---------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{}, {"bad_words_ids": [[50]]}], ids=str)
def test_compiled_code_around(settings):
    ours = twins(seed=1)[1]

    @torch.compile(backend="eager")
    def around(ids, mask):
        ids = torch.where(ids == 7, 8, ids * 1)
        out = ours.generate(
            ids, attention_mask=mask, policy="uniform:3", max_new_tokens=6, **settings
        )
        return out[:, -6:] + 1

    for seed in (1, 2):
        inputs = padded(random_prompts(3, seed=seed))
        ids = torch.where(inputs["input_ids"] == 7, 8, inputs["input_ids"])
        want = (
            ours.generate(
                ids,
                attention_mask=inputs["attention_mask"],
                policy="uniform:3",
                max_new_tokens=6,
                **settings,
            )[:, -6:]
            + 1
        )
        assert torch.equal(around(inputs["input_ids"], inputs["attention_mask"]), want)


def test_a_compiled_model():
    ours = twins(seed=1)[1]
    ids = torch.tensor([[2, 40, 41]])
    want = ours.generate(ids, policy="uniform:3", max_new_tokens=6)
    compiled = torch.compile(ours, backend="eager")
    assert torch.equal(compiled.generate(ids, policy="uniform:3", max_new_tokens=6), want)
    logits = ours(ids).logits
    torch.testing.assert_close(compiled(ids).logits, logits)


def test_models_in_several_threads():
    models = [twins(seed=seed)[1] for seed in (1, 2, 3)]
    inputs = padded(random_prompts(3, seed=6))

    def run(module):
        plain = module.generate(**inputs, policy="uniform:3", max_new_tokens=8)
        stepped = module.generate(
            **inputs, policy="uniform:3", max_new_tokens=8, logits_processor=[lambda i, s: s]
        )
        beams = module.generate(**inputs, num_beams=2, max_new_tokens=8)
        return plain, stepped, beams

    alone = [run(module) for module in models]
    with ThreadPoolExecutor(3) as pool:
        together = list(pool.map(run, models))
    for a, b in zip(alone, together, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
