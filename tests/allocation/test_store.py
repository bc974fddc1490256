"""The table on disk: what is kept, what a kill leaves, what is refused."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import numpy as np
import pytest

from dynkern.allocation.families import make_routes
from dynkern.allocation.schema import FILE_NAME, PromptRow, Row, digest_ids
from dynkern.allocation.store import TableStore, table_path
from dynkern.allocation.table import load_table
from support.tables import dump

MANIFEST = {"family": "uniform", "samples": 2, "prompts": 3, "model": {"weights": "abc"}}


def row(prompt: int, route: int, sample: int = 0, **other) -> Row:
    scores = {"rouge1": 0.5, "rouge2": 0.25, "rougeL": (1 + route) / 10 + prompt / 100}
    values = {"text": f"täxt {prompt}", "token_ids": (5, 2), **scores, "layers": 2}
    values |= {"new_tokens": 2, "stop_reason": "eos"}
    return Row(prompt, route, sample, **{**values, **other})


def filled(path: Path, prompts: range = range(3), routes: int = 3) -> Path:
    with TableStore.create(path, MANIFEST, resume=True) as store:
        store.put_routes(make_routes("uniform", routes))
        store.put_prompts(PromptRow(p, f"r{p}", digest_ids([2, p]), 2, "here") for p in prompts)
        for p in prompts:
            rows = [row(p, r, s) for r in range(routes) for s in range(2)]
            store.put(rows, {p: np.full(4, p, dtype=np.float32)})
            store.put_losses((p, r, 3.0 * (r + 1), 3) for r in range(routes))
    return path


def test_rows_come_back(tmp_path):
    path = filled(tmp_path / FILE_NAME)
    assert sorted(p.name for p in tmp_path.iterdir()) == [FILE_NAME]  # no log, no lock
    table = load_table(tmp_path)
    assert table.ids == ["r0", "r1", "r2"] and table.sources == ["here"] * 3
    assert table.quality.shape == (3, 3, 2) and table.costs.tolist() == [1, 2, 3]
    assert table.quality[2, 1].tolist() == [0.22, 0.22]
    assert table.loss[1].tolist() == [1.0, 2.0, 3.0]
    assert table.states.tolist() == [[0] * 4, [1] * 4, [2] * 4]
    assert np.isnan(table.agreement).all() and table.missing == 0
    with TableStore.connect(path) as store:
        assert len(store.done()) == 18 and (2, 1, 1) in store.done()
        assert store.losses_done() == {(p, r) for p in range(3) for r in range(3)}


def test_prompts_that_lack_rows_are_left_out(tmp_path):
    path = filled(tmp_path / FILE_NAME, range(2))
    with TableStore.create(path, MANIFEST, resume=True) as store:
        store.put_prompts([PromptRow(2, "r2", digest_ids([2, 2]), 2, None)])
        store.put([row(2, 0)], {})
    table = load_table(path)
    assert table.ids == ["r0", "r1"] and table.missing == 1
    (tmp_path / "none").mkdir()
    TableStore.create(tmp_path / "none" / FILE_NAME, MANIFEST, resume=False).close()
    with pytest.raises(ValueError, match="holds no routes yet; fill it with --resume"):
        load_table(tmp_path / "none")


def test_equal_prompts_share_a_mean(tmp_path):
    path = tmp_path / FILE_NAME
    with TableStore.create(path, MANIFEST, resume=False) as store:
        store.put_routes(make_routes("uniform", 3))
        same = digest_ids([2, 9])
        store.put_prompts(PromptRow(p, f"r{p}", same, 2, None) for p in range(2))
        store.put([row(p, r, s) for p in range(2) for r in range(3) for s in range(2)], {})
    digests, quality = load_table(path).merged()
    assert digests == [same]
    assert quality[0].tolist() == pytest.approx([0.105, 0.205, 0.305])


def test_a_transaction_is_whole_or_absent(tmp_path):
    path = filled(tmp_path / FILE_NAME, range(1))
    before = dump(path)
    with TableStore.create(path, MANIFEST, resume=True) as store:
        with pytest.raises(sqlite3.IntegrityError):
            store.put([row(1, 0), row(1, 1), row(0, 0)], {})  # the last is there already
        assert len(store.done()) == 6
    assert dump(path) == before


def test_one_writer_at_a_time_and_readers_beside_it(tmp_path):
    path = filled(tmp_path / FILE_NAME, range(1))
    with TableStore.create(path, MANIFEST, resume=True) as store:
        store.put([row(1, 0)], {})
        with pytest.raises(ValueError, match="is being written by another process"):
            TableStore.create(path, MANIFEST, resume=True)
        with TableStore.connect(path) as reader:
            assert (1, 0, 0) in reader.done()
    TableStore.create(path, MANIFEST, resume=True).close()


def test_an_existing_table_needs_resume_and_the_same_settings(tmp_path):
    path = filled(tmp_path / FILE_NAME)
    content = path.read_bytes()
    with pytest.raises(ValueError, match="go on with --resume or take another --output"):
        TableStore.create(path, MANIFEST, resume=False)
    other = {**MANIFEST, "samples": 3, "model": {"weights": "xyz"}, "seed": 1}
    with pytest.raises(ValueError, match="other settings") as caught:
        TableStore.create(path, other, resume=True)
    for named in ("samples (2 then, 3 now)", "model.weights (abc then, xyz now)", "seed (not st"):
        assert named in str(caught.value)
    with TableStore.create(path, MANIFEST, resume=True) as store:
        with pytest.raises(ValueError, match="other routes of uniform"):
            store.put_routes(make_routes("uniform", 4))
        store.put_routes(make_routes("uniform", 3))
    assert path.read_bytes() == content  # looking changes nothing
    assert [p.name for p in tmp_path.iterdir()] == [FILE_NAME]


def damage_header(content: bytearray) -> None:
    content[:16] = b"no database here"


def damage_page(content: bytearray) -> None:
    content[4096:8192] = bytes(4096)


def damage_text(content: bytearray) -> None:
    at = content.rindex("täxt 2".encode())
    content[at : at + 4] = b"test"


def cut(content: bytearray) -> None:
    del content[len(content) // 2 :]


def other_kind(content: bytearray) -> None:
    content[68:72] = bytes(4)  # the application's mark


@pytest.mark.parametrize("harm", [damage_header, damage_page, damage_text, cut, other_kind])
def test_damage_is_said_in_one_line(tmp_path, harm):
    path = filled(tmp_path / FILE_NAME)
    content = bytearray(path.read_bytes())
    harm(content)
    path.write_bytes(content)
    with pytest.raises(ValueError, match="damaged|no table of dynkern") as caught:
        load_table(path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)
    if harm is not damage_text:
        with pytest.raises(ValueError, match="damaged|no table of dynkern"):
            TableStore.create(path, MANIFEST, resume=True)
    assert path.read_bytes() == content


@pytest.mark.parametrize(
    "harm",
    [
        "UPDATE losses SET loss = 2 WHERE prompt = 1 AND route = 1",
        "UPDATE prompts SET digest = 'f' || substr(digest, 2) WHERE prompt = 2",
        "UPDATE states SET state = zeroblob(16) WHERE prompt = 1",
        "UPDATE rows SET agreement = 0.5 WHERE prompt = 0",
        "DELETE FROM rows WHERE prompt = 2",
    ],
)
def test_what_rows_do_not_hold_is_sealed(tmp_path, harm):
    path = filled(tmp_path / FILE_NAME)

    def change(statement: str) -> None:
        connection = sqlite3.connect(path)
        connection.execute(statement)
        connection.commit()
        connection.close()

    load_table(path)
    change(harm)
    with pytest.raises(ValueError, match="damaged or no table .it differs from its seal"):
        load_table(path)
    with pytest.raises(ValueError, match="differs from its seal"):
        TableStore.create(path, MANIFEST, resume=True)
    # as a kill leaves it: nothing to hold it against, and sealed when it is closed again
    change("DELETE FROM manifest WHERE key = 'seal'")
    load_table(path)
    with TableStore.create(path, MANIFEST, resume=True) as store:
        store.put_agreements([(0.25, 0, 0, 0)])
    change(harm.replace("0.5", "0.75").replace("= 2 WHERE", "= 5 WHERE").replace("'f'", "'e'"))
    if not harm.startswith(("DELETE", "UPDATE states")):  # those change nothing twice
        with pytest.raises(ValueError, match="differs from its seal"):
            load_table(path)


@pytest.mark.parametrize(
    ("harm", "named"),
    [
        ("UPDATE routes SET keep = '111' WHERE route = 1", "route 1 differs"),
        ("UPDATE losses SET tokens = 0", "ZeroDivisionError"),
        ("UPDATE prompts SET tokens = 'two'", "tokens: got 'two'"),
        ("DELETE FROM prompts WHERE prompt = 1", "KeyError"),
        ("UPDATE states SET state = zeroblob(3) WHERE prompt = 1", "ValueError"),
        ("UPDATE manifest SET value = '[]' WHERE key = 'manifest'", "manifest is no object"),
    ],
)
def test_a_table_without_a_seal_still_makes_sense(tmp_path, harm, named):
    path = filled(tmp_path / FILE_NAME)
    connection = sqlite3.connect(path)
    connection.execute("DELETE FROM manifest WHERE key = 'seal'")
    connection.execute(harm)
    connection.commit()
    connection.close()
    with pytest.raises(ValueError, match=f"damaged or no table .*{named}") as caught:
        load_table(path)
    assert "\n" not in str(caught.value)


def test_what_is_no_table(tmp_path):
    with pytest.raises(FileNotFoundError, match="no file .*table.sqlite, expected a table"):
        table_path(tmp_path)
    (tmp_path / "text").write_text("some text that somebody needs")
    with pytest.raises(ValueError, match="damaged or no table"):
        TableStore.create(tmp_path / "text", MANIFEST, resume=True)
    assert (tmp_path / "text").read_text() == "some text that somebody needs"
    connection = sqlite3.connect(tmp_path / "other.sqlite")
    connection.execute("CREATE TABLE t (x)")
    connection.close()
    with pytest.raises(ValueError, match="no table of dynkern"):
        TableStore.create(tmp_path / "other.sqlite", MANIFEST, resume=True)


def test_merging_twice_is_merging_once(tmp_path):
    whole = dump(filled(tmp_path / "whole.sqlite"))
    path = filled(tmp_path / FILE_NAME, range(1))
    shard = filled(tmp_path / "shard.sqlite", range(1, 3))
    with TableStore.create(path, MANIFEST, resume=True) as store:
        assert store.merge(shard) == 12
        once = path.read_bytes()
        assert store.merge(shard) == 0
        assert path.read_bytes() == once
    assert dump(path) == whole
    with TableStore.create(tmp_path / "other.sqlite", {**MANIFEST, "seed": 5}, False) as store:
        with pytest.raises(ValueError, match="shard.sqlite|other settings"):
            store.merge(shard)


def test_a_full_disk_is_an_os_error(tmp_path):
    with TableStore.create(tmp_path / FILE_NAME, MANIFEST, resume=False) as store:
        pages = store.select("PRAGMA page_count")[0][0]
        store.select(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(OSError, match="cannot be written"):
            store.put([row(0, r, text="x" * 5000) for r in range(50)], {})
        assert store.done() == set()
