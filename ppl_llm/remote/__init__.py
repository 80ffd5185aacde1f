"""Requests to model servers, shared by the language model and the reward model that live on one."""
