"""Runs the PTX that Triton compiles on a CPU, checks every access and finds races. See README.md beside this file."""

import ptx_machine.access
import ptx_machine.arithmetic
import ptx_machine.comparison
import ptx_machine.control
import ptx_machine.conversion
import ptx_machine.exchange  # noqa: F401
from ptx_machine.driver import target
from ptx_machine.launch import Settings, execute
from ptx_machine.parse import MachineError
from ptx_machine.report import Executed, Finding, FindingsError, LaunchCounts, Report

__all__ = [
    "Executed", "Finding", "FindingsError", "LaunchCounts", "MachineError", "Report", "Settings", "execute", "target",
]  # fmt: skip
