"""The tables of the Emu3 paper, with rows of our own runs, intervals and paired tests."""
