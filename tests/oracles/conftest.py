"""Reports how many rows were compared with each system."""

import pytest

collect_ignore_glob = ["*_oracle.py"]  # each imports a package that may not be installed


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    lines = [
        f"{report.nodeid.split('::')[0]}  {value}"
        for report in terminalreporter.getreports("passed")
        for name, value in report.user_properties
        if name == "compared" and report.when == "call"
    ]
    if lines:
        terminalreporter.section("compared with other systems")
        terminalreporter.write_line("\n".join(sorted(lines)))
