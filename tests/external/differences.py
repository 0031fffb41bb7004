"""Which tests end otherwise with a plugin than without it, from two files of results in JUnit's XML.

    python differences.py PLAIN.xml WITH_PLUGIN.xml

Prints a line for each, and ends with 1 if there is one.
"""

from __future__ import annotations

import sys
from xml.etree import ElementTree


def outcomes(path: str) -> dict[str, tuple[str, str]]:
    """(outcome, first line of the reason) of each test."""
    found = {}
    for case in ElementTree.parse(path).iter("testcase"):
        bad = next((each for each in case if each.tag in ("failure", "error", "skipped")), None)
        reason = "" if bad is None else (bad.get("message") or "").strip().splitlines()[:1]
        outcome = "passed" if bad is None else bad.tag
        found[f"{case.get('classname')}::{case.get('name')}"] = (outcome, reason[0] if reason else "")
    return found


def main(plain: str, plugin: str) -> int:
    """Print what differs; returns the exit status."""
    before, after = outcomes(plain), outcomes(plugin)
    differing = [name for name in before if after.get(name, ("missing", ""))[0] != before[name][0]]
    for name in differing:
        outcome, reason = after.get(name, ("missing", ""))
        print(f"{name}: {before[name][0]} without, {outcome} with: {reason}")
    passed = sum(outcome == "passed" for outcome, _ in before.values())
    print(f"{len(before)} tests, {passed} pass without, {len(differing)} differ")
    return 1 if differing or not before else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
