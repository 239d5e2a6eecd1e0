from __future__ import annotations

import builtins
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest_report import Page, judged_of

import kingpost as kp
from kingpost.errors import MissingExtraError
from kingpost.finding import Finding
from kingpost.patch import Patch
from kingpost.report.html import render, report

HOSTILE = '<script>alert("x")</script> & \'$\\frac{1}{0}$\''
