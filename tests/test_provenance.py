"""What a page says of its own making."""

import dataclasses
import re
import sys

from emu3_jax import provenance
from emu3_jax.figures import page

MADE = provenance.Provenance(
    command="python -m emu3_jax.show --text='<b>'",
    revision="0123456789abcdef+changes",
    versions={"emu3_jax": "0.1", "jax": "0.10.2", "Python": "3.11.2"},
    machine="a processor, 2 cores, 24 GiB",
    time="2026-11-29 12:00 UTC",
)


def test_a_page_states_command_revision_machine_and_date(monkeypatch):
    monkeypatch.setattr(provenance, "of_this_process", lambda: MADE)
    text = page.page("title", "<main></main>", credits=("Images: <someone>.",))
    foot = text[text.index("<footer>") :]
    assert "<code>python -m emu3_jax.show --text=&#x27;&lt;b&gt;&#x27;</code>" in foot
    assert (
        "2026-11-29 12:00 UTC; emu3_jax 0.1, jax 0.10.2, Python 3.11.2; revision 0123456789ab with "
        "changes; a processor, 2 cores, 24 GiB"
    ) in foot
    assert foot.index("Images: &lt;someone&gt;.") < foot.index("Written by")


def test_of_this_process():
    made = provenance.of_this_process()
    assert made.command.split()[0] == re.split(r"[/\\]", sys.executable)[-1]
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d UTC", made.time)
    assert re.search(r"\w.*, \d+ cores?", made.machine)
    assert made.versions["jax"]


def test_without_a_checkout():
    assert "; no checkout; " in dataclasses.replace(MADE, revision=None).sentence()
