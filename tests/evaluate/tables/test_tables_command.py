"""The page of tables from runs, in three forms, and runs that cannot be read or compared."""

import html.parser
import json
import re

import pytest
from etils import epath

from emu3_jax.evaluate import evaluator
from emu3_jax.evaluate.benchmarks.item_file import ItemFile
from emu3_jax.evaluate.tables import __main__ as command
from emu3_jax.evaluate.tables import paper_tables

SAMPLING = {"temperature": 0.0, "whole_vocabulary": False, "max_new": 32}


def items_of(scores):
    """Lines of a file of items, with the scores of the official rule."""
    return [
        {"id": f"q{number}", "prompt": "?", "image_sizes": [[8, 8]], "answer": "a", "truth": "b",
         "scores": {"official": {"parsed": "a", "score": score}}}
        for number, score in enumerate(scores)
    ]  # fmt: skip


def write_run(folder, benchmarks, drawings=None, total=None, **settings):
    """A folder as the evaluate command writes it.

    Args:
      folder: the folder.
      benchmarks: name of an entry → (benchmark, metrics, items).
      drawings: benchmark → metrics.
      total: number of questions or prompts, if some are missing.
      **settings: conditions of every benchmark.
    """
    entries, results = [], {}

    def add(kind, name, benchmark, metrics, items):
        entries.append({"evaluator": kind, "benchmark": benchmark, "name": name})
        results[name] = evaluator.Result(metrics, notes=["official: to the letter.", "other: no."])
        run = {"benchmark": benchmark, "version": "", "template": "llava", "sampling": SAMPLING}
        file = ItemFile(epath.Path(folder), name, run | {"data": "cd34", "media": {}} | settings)
        file.add(items)
        file.finish(items)

    folder.mkdir(parents=True)
    for name, (benchmark, metrics, items) in benchmarks.items():
        counts = {"questions": total or len(items), "answered": len(items)}
        add("answers", name, benchmark, metrics | counts, items)
    for benchmark, metrics in (drawings or {}).items():
        samples = [{"id": str(number), "prompt_id": str(number // 4)} for number in range(8)]
        add("drawings", benchmark, benchmark, metrics | {"prompts": total or 2}, samples)
    evaluator.write_results(results, folder, "nano, step 7", entries)
    return folder


def gqa(scores):
    return "gqa", {"official/accuracy": 100 * sum(scores) / len(scores)}, items_of(scores)


@pytest.fixture
def runs(tmp_path):
    """Two runs on 40 questions of GQA; the second has drawn for GenEval as well."""
    first = write_run(tmp_path / "first_run", {"gqa": gqa([1.0] * 20 + [0.0] * 20)})
    second = write_run(
        tmp_path / "second", {"gqa": gqa([1.0] * 30 + [0.0] * 10)}, {"geneval": {"overall": 0.4375}}
    )
    return [first, second]


def build(runs, output):
    command.main([*map(str, runs), f"--output={output}"])
    return output.read_text(encoding="utf-8")


def section(text, title):
    return text.split(f"## {title}")[1].split("\n## ")[0]


def test_markdown_has_all_systems_and_a_row_for_each_run(runs, tmp_path):
    text = build(runs, tmp_path / "tables.md")
    for table in paper_tables.load():
        for row in table.rows:
            assert f"| {row.system} | " in text
    understanding = section(text, "Understanding")
    assert "78.5<sup>\\*</sup>" in understanding and "first\\_run" in understanding
    assert re.search(r"second\*\* \| – .*\*\*75.0\*\* \\\[6\d.\d, 8\d.\d\\\]", understanding)
    assert "gqa (40 questions): rule official; template llava; sampling (temperature 0.0, max " in (
        understanding
    )
    drawing = section(text, "Drawing: GenEval by task")
    assert "**0.44** | – | –" in drawing and "first" not in drawing
    assert "geneval: official: to the letter. geneval: other: no." in drawing
    assert "gqa: to the letter." in understanding and "no." not in understanding


def test_runs_are_compared_item_by_item(runs, tmp_path):
    text = section(build(runs, tmp_path / "tables.md"), "Runs compared")
    line = next(line for line in text.split("\n") if "| gqa |" in line)
    assert "| official | 40 | 50.0 | 75.0 | **+25.0** \\[+1" in line
    assert line.endswith("| 0.0020 |")  # ten items, all better: 2 of 2^10 signs
    assert "Runs compared" not in build(runs[:1], tmp_path / "one.md")


class Parsed(html.parser.HTMLParser):
    """Rows of tables as lists of cells; tags must be closed in order."""

    VOID = {"meta", "br"}

    def __init__(self, text):
        super().__init__()
        self.open, self.rows, self.loaded = [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.loaded += [value for key, value in attrs if key == "src"]
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "td" in self.open or "th" in self.open:
            self.rows[-1][-1] += data


def test_page_is_whole_and_loads_nothing(runs, tmp_path):
    text = build(runs, tmp_path / "tables.html")
    page = Parsed(text)
    assert not page.loaded and "http" not in text
    (emu3,) = [row for row in page.rows if row[0] == "Emu3" and "687" in row]
    assert emu3[5] == "75.1*" and emu3[-1] == "1"
    lengths = {len(row) for row in page.rows if "first_run" in row[0]}
    assert lengths == {len(emu3), 8}
    assert '<a href="#table6">' in text and '<section id="table6">' in text


def test_latex_is_escaped_and_balanced(runs, tmp_path):
    text = build(runs, tmp_path / "tables.tex")
    assert r"first\_run" in text and "PixArt-$\\alpha$" in text and r"95 \% interval" in text
    assert (
        text.count(r"\begin{tabular}") == text.count(r"\toprule") == text.count(r"\bottomrule") == 7
    )
    assert r"\textbf{75.0} {\scriptsize {[}6" in text
    plain = re.sub(r"\\[{}]", "", text)
    assert plain.count("{") == plain.count("}")
    assert text.isascii()
    for table in text.split(r"\begin{tabular}")[1:]:
        columns = re.match(r"{(lr+)}", table)[1]
        rows = [line for line in table.split("\n") if line.endswith(r"\\")]
        assert {row.count(" & ") + 1 for row in rows} == {len(columns)}


def test_an_incomplete_set_says_so(tmp_path):
    items = items_of([1.0, 0.0, 1.0, 1.0])
    run = write_run(
        tmp_path / "run", {"gqa": ("gqa", {"official/accuracy": 75.0}, items)}, total=12578
    )
    text = build([run], tmp_path / "tables.md")
    assert "**75.0** \\[25.0, 100.0\\] of 4 questions" in text
    assert "gqa is not whole: 4 of 12,578 questions." in text


def test_a_figure_that_is_no_mean_of_items_has_no_interval(tmp_path):
    items = items_of([1.0, 0.0, 1.0, 1.0])
    run = write_run(tmp_path / "run", {
        "pope": ("pope", {"official/mean_of_3/f1": 0.7272}, items),
        "ocrbench": ("ocrbench", {"official/final_score": 3.0}, items),
        "mmvet": ("mmvet", {"official/other": 3.0}, items),
    })  # fmt: skip
    text = section(build([run], tmp_path / "tables.md"), "Understanding")
    assert "| **72.7** |" in text
    assert "| **3** \\[1, 4\\] |" in text
    assert "mmvet: results.json has no judged/total." in text


def test_an_incomplete_set_of_drawings_says_so(tmp_path):
    run = write_run(tmp_path / "run", {}, {"geneval": {"overall": 0.5}}, total=553)
    text = build([run], tmp_path / "tables.md")
    assert "| **0.50** of 2 prompts |" in text
    assert "geneval is not whole: 2 of 553 prompts." in text


def test_benchmarks_of_no_table_have_one_of_their_own(tmp_path):
    run = write_run(tmp_path / "run", {}, {"partiprompts": {"clip_t": 0.3125}})
    text = section(build([run], tmp_path / "tables.md"), "Other benchmarks")
    assert "| partiprompts | clip\\_t | **0.3125** | a |" in text


def test_a_benchmark_scored_twice_has_two_rows(tmp_path):
    scores = [1.0, 0.0, 1.0]
    run = write_run(tmp_path / "run", {"gqa": gqa(scores), "again": gqa(scores)})
    text = section(build([run], tmp_path / "tables.md"), "Understanding")
    assert "run: again**" in text and text.count("gqa (3 questions)") == 2


def test_versions_are_not_compared(tmp_path):
    runs = [
        write_run(tmp_path / "a", {"gqa": gqa([1.0, 0.0])}),
        write_run(tmp_path / "b", {"gqa": gqa([1.0, 0.0, 1.0])}, version="val"),
    ]
    text = section(build(runs, tmp_path / "tables.md"), "Runs compared")
    assert "is not compared: its versions are '' and 'val'." in text


def refused(capsys, runs, output):
    with pytest.raises(SystemExit) as stop:
        command.main([*map(str, runs), f"--output={output}"])
    assert stop.value.code == 2 and not output.exists()
    (line,) = capsys.readouterr().err.strip().split("\n")
    return line


def state_answered(run, number):
    document = json.loads((run / "results.json").read_text())
    document["results"]["gqa"]["metrics"]["answered"] = number and float(number)
    (run / "results.json").write_text(json.dumps(document))


@pytest.mark.parametrize("name", ["tables.pdf", "tables"])
def test_unknown_ending(runs, tmp_path, capsys, name):
    assert f"{name} must end in one of .html, .md, .tex" in refused(capsys, runs, tmp_path / name)


def test_a_folder_without_results(runs, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    line = refused(capsys, [runs[0], tmp_path / "empty"], tmp_path / "t.md")
    assert "empty/results.json does not exist: run `python -m emu3_jax.evaluate` first" in line


@pytest.mark.parametrize("again", ["first_run", "second/../first_run"])
def test_a_folder_given_twice(runs, tmp_path, capsys, again):
    line = refused(capsys, [*runs, tmp_path / again], tmp_path / "t.md")
    assert f"{again} is given twice" in line


def test_a_run_without_benchmarks(tmp_path, capsys):
    run = write_run(tmp_path / "run", {})
    document = json.loads((run / "results.json").read_text())
    document["evaluation"] = [{"evaluator": "likelihood", "name": "likelihood"}]
    (run / "results.json").write_text(json.dumps(document))
    assert "holds no benchmark, only likelihood" in refused(capsys, [run], tmp_path / "t.md")
    (run / "results.json").write_text("{}")
    assert "results.json has no results" in refused(capsys, [run], tmp_path / "t.md")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda items: items[:-1], "has the item 'q39' and"),
        (lambda items: [*items[:-1], items[-1] | {"id": "other"}], "has the item 'q39' and"),
        (lambda items: [*items, items[0] | {"id": "more"}], "has the item 'more' and"),
        (
            lambda items: [items[0] | {"truth": "c"}, *items[1:]],
            "have different right answers to the item 'q0'",
        ),
        (lambda items: [*items, items[0]], "items.jsonl:41: the id 'q0' occurs twice"),
        (lambda items: [{"id": "q0"}, *items[1:]], "items.jsonl:1: the field 'scores' is missing"),
    ],
)
def test_items_that_differ(runs, tmp_path, capsys, change, message):
    path = runs[1] / "gqa_items.jsonl"
    items = change([json.loads(line) for line in path.read_text().splitlines()])
    path.write_text("".join(json.dumps(item) + "\n" for item in items))
    state_answered(runs[1], len(items))
    assert message in refused(capsys, runs, tmp_path / "t.md")


def test_files_that_do_not_belong_together(runs, tmp_path, capsys):
    state_answered(runs[0], 39)
    message = "gqa_items.jsonl has 40 items, expected the 39 answered ones"
    assert message in refused(capsys, runs, tmp_path / "t.md")
    state_answered(runs[0], None)
    message = "results.json, gqa: answered is None, expected a number"
    assert message in refused(capsys, runs, tmp_path / "t.md")
    (runs[0] / "gqa_run.json").write_text('{"benchmark": "pope"}')
    message = "gqa_run.json is of the benchmark 'pope', but"
    assert message in refused(capsys, runs, tmp_path / "t.md")
    (runs[0] / "gqa_run.json").unlink()
    assert "gqa_run.json cannot be read" in refused(capsys, runs, tmp_path / "t.md")


def test_a_missing_file_of_items(runs, tmp_path, capsys):
    (runs[0] / "gqa_items.jsonl").unlink()
    assert "gqa_items.jsonl does not exist" in refused(capsys, runs, tmp_path / "t.md")
