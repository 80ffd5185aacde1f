"""``python -m ppl_llm.cli``."""

from . import main

main()
