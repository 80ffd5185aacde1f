"""Answers: extraction from text, and votes over weighted candidates."""

from __future__ import annotations


def extract_answer(text: str) -> str | None:
    return None
