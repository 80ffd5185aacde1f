"""``python -m ppl_llm.methods`` prints the table of the documentation."""

from . import markdown_table

print(markdown_table())
