"""How phantoms name their sites."""

from __future__ import annotations


def site_name(number: int) -> str:
    """Return the name that cases.csv uses for a site (from 1)."""
    return f"site-{number:02d}"


def site_groups(sites: int, internal: int) -> dict[str, tuple[str, ...]]:
    """Return the groups `internal` (the first sites) and `external` (the rest, where there are any)."""
    names = tuple(site_name(number) for number in range(1, sites + 1))
    groups = {"internal": names[:internal], "external": names[internal:]}
    return {name: members for name, members in groups.items() if members}
