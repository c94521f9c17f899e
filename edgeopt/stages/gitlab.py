"""gitlab: findings as a code quality report, the JSON that GitLab shows in merge requests.

Shape: https://docs.gitlab.com/ci/testing/code_quality/ (description, check_name, fingerprint, severity, location).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

from edgeopt.stages.findings import Finding

_SEVERITY = {"error": "major", "warning": "minor", "notice": "info"}


def gitlab(findings: Sequence[Finding]) -> str:
    """Findings as one JSON array. A fingerprint stays the same from run to run, so that GitLab knows what is new."""
    found = []
    for one in findings:
        named = "\0".join((one.file or "", one.check, one.subject))
        found.append(
            {
                "description": one.message,
                "check_name": f"edgeopt: {one.check}",
                "fingerprint": hashlib.sha256(named.encode()).hexdigest(),
                "severity": _SEVERITY[one.level],
                "location": {"path": one.file or "report.json", "lines": {"begin": one.line or 1}},
            }
        )
    return json.dumps(found, indent=1, ensure_ascii=False) + "\n"
