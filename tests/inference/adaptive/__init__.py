"""Tests of budgets that adapt."""
