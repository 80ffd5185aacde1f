"""The study of docs/study.md."""
