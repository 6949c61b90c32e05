"""Trials on Ray: the only package that imports it."""

import os
from pathlib import Path

from autoft.threads import wait_briefly

# Read by Ray when it is imported. Usage statistics are not sent; an actor without GPUs sees none.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")  # Ray Train's processes stay where they start
wait_briefly(os.environ)
# Read by the C library of the processes that Ray starts from this one. An actor trains in a thread of its own, whose memory glibc would take
# from a second pool, and give back to the system after every step; see autoft/memory.py.
os.environ.setdefault("MALLOC_ARENA_MAX", "1")
# `ray start` asks for the user's token as soon as there is one, and Ray makes one for every local cluster; but `ray.init` does not
# show it to a cluster it joins unless told to. A cluster that asks for none ignores it.
if {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & set(os.environ) or (Path.home() / ".ray" / "auth_token").is_file():
    os.environ.setdefault("RAY_AUTH_MODE", "token")
