"""The published tables as data."""

import pytest

from emu3_jax.evaluate.benchmarks.registry import QUESTIONS
from emu3_jax.evaluate.tables import paper_tables

TABLES = {table.name: table for table in paper_tables.load()}


def figures(name, system):
    (row,) = [row for row in TABLES[name].rows if row.system == system]
    return dict(zip((c.name for c in TABLES[name].columns), row.figures, strict=True))


@pytest.mark.parametrize("table", TABLES.values(), ids=list(TABLES))
def test_every_figure_is_a_number_with_a_source_and_explained_marks(table):
    assert table.title and table.about
    assert len({row.system for row in table.rows}) == len(table.rows)
    used = set()
    for row in table.rows:
        assert row.source in table.sources
        assert len(row.figures) == len(table.columns)
        assert any(row.figures)
        for figure in row.figures:
            number = figure.rstrip("".join(table.marks))
            used |= set(figure[len(number) :])
            assert not number or float(number) >= 0
    assert used == table.marks.keys()
    assert {row.source for row in table.rows} == table.sources.keys()


def test_the_systems_of_the_paper_keep_their_rows():
    systems = {name: {row.system for row in table.rows} for name, table in TABLES.items()}
    assert systems["table4"] >= {
        "Stable Diffusion 1.5", "Stable Diffusion 2.1", "Stable Diffusion 3", "SDXL", "DALL-E 2",
        "DALL-E 3", "PixArt-α", "Show-o", "Chameleon", "LlamaGen", "Emu3", "Emu3-DPO",
    }  # fmt: skip
    assert systems["table5"] >= {"OpenSora-1.2", "CogVideoX-5B", "Gen-2", "Gen-3", "Emu3"}
    assert systems["table6"] >= {
        "LLaVA-1.5", "LLaVA-1.6 (HD)", "Qwen-VL-Chat", "InstructBLIP", "Fuyu-8B (HD)", "Emu3",
    }  # fmt: skip
    assert {name: len(rows) for name, rows in systems.items()} == {
        "table4": 16, "table5": 14, "table6": 14, "table7": 13, "table8": 12, "figure5": 3,
    }  # fmt: skip


def test_tables_agree_where_they_print_the_same():
    for system in ("SDXL", "DALL-E 3", "Emu3", "Emu3-DPO"):
        summary = figures("table4", system)
        assert summary["GenEval"].strip("†") == figures("table7", system)["Overall"].strip("†")
        assert summary["DPG-Bench"] == figures("table8", system)["Overall"]


def test_the_score_of_geneval_is_the_mean_of_its_tasks():
    for row in TABLES["table7"].rows:
        overall, *tasks = (float(figure.strip("†")) for figure in row.figures)
        assert overall == pytest.approx(sum(tasks) / len(tasks), abs=0.011), row.system


@pytest.mark.parametrize("name", sorted(QUESTIONS))
def test_a_column_is_filled_by_the_figure_that_papers_print(name):
    columns = [c for table in TABLES.values() for c in table.columns if c.benchmark == name]
    assert [column.figure for column in columns] in ([], [QUESTIONS[name].headline])
