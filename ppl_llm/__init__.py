"""ppl_llm."""
