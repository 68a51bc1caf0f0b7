"""The overview of an installation: its parts, its pools and other objects."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.text import Text

from engineroom.api import kinds
from engineroom.cli.views.diagnose import Check, Severity, checks, pool_findings, pool_state
from engineroom.cli.views.explain import finding_document, findings_list
from engineroom.cli.views.output_formats import Indent, table, word
from engineroom.cli.views.top import by_pool, summary

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from rich.console import RenderableType

    from engineroom.api.kinds import Kind
    from engineroom.cli.connections.model import Document, Installation, Pod, Pool
    from engineroom.cli.views.diagnose import PoolFinding


@dataclass(frozen=True, slots=True)
class InstallationOverview:
    """Everything that ``status`` shows. ``scope`` is a namespace, None for all."""

    installation: Installation
    pools: tuple[Pool, ...]
    pods: tuple[Pod, ...]
    scope: str | None
    now: datetime
    program: str
    #: Objects of the other kinds in the scope, by kind.
    objects: Mapping[str, Sequence[Document]] = field(default_factory=dict)
    #: Checks through the API process, in place of the parts of the installation.
    through_api: tuple[Check, ...] | None = None

    @property
    def checks(self) -> tuple[Check, ...]:
        """The parts of the installation, then each kind of the registry."""
        parts = self.through_api
        if parts is None:
            parts = checks(self.installation, self.pools)
        lines = (
            kind.status_view.load()(kind, self.objects.get(kind.kind, ()), self)
            for kind in kinds.registry()
        )
        return (*parts, *(line for line in lines if line is not None))

    @property
    def troubled(self) -> tuple[tuple[Pool, tuple[PoolFinding, ...]], ...]:
        """Pools with findings, worst first."""
        groups = by_pool(self.pods)
        troubled = []
        for pool in self.pools:
            own = groups.get((pool.namespace, pool.name), [])
            findings = pool_findings(pool, own, self.now, self.program)
            if findings:
                troubled.append((pool, findings))
        order = list(Severity)
        return tuple(
            sorted(troubled, key=lambda pair: (order.index(pair[1][0].severity), pair[0].id))
        )

    @property
    def healthy(self) -> bool:
        """True if no check has a problem; warnings do not count."""
        return all(check.severity is not Severity.PROBLEM for check in self.checks)


def pools_status(
    kind: Kind, documents: Sequence[Document], overview: InstallationOverview
) -> Check:
    """Sum up the pools of an overview, which has them parsed."""
    del kind, documents
    where = f"in namespace {overview.scope}" if overview.scope else "in all namespaces"
    if not overview.pools:
        return Check("pools", Severity.OK, f"none {where}")
    bad = sum(
        any(finding.severity is Severity.PROBLEM for finding in findings)
        for _, findings in overview.troubled
    )
    if bad:
        return Check("pools", Severity.PROBLEM, f"{summary(overview.pools)}; {bad} with problems")
    return Check("pools", Severity.OK, f"{summary(overview.pools)}")


def status_text(overview: InstallationOverview) -> RenderableType:
    """Return one line for each check, then each pool with findings and their fixes."""
    installation = overview.installation
    version = f" (Kubernetes {installation.server_version})"
    parts: list[RenderableType] = [
        Text(
            f"Engineroom on {installation.server}" + ("" if overview.through_api else version),
            "bold",
        ),
        Text(),
        table(
            ("", "", ""),
            ((word(check.severity), check.part, check.summary) for check in overview.checks),
            header=False,
        ),
    ]
    fixes = [check for check in overview.checks if check.fix]
    if fixes:
        parts.append(Text())
        parts += [Text(f"fix {check.part}: {check.fix}") for check in fixes]
    for pool, findings in overview.troubled:
        parts += [
            Text(),
            Text.assemble((pool.id, "bold"), "  ", word(pool_state(pool))),
            Indent(findings_list(findings)),
        ]
    if installation.denied:
        parts += [
            Text(),
            Text(f"not looked at, you may not list: {', '.join(installation.denied)}", "dim"),
        ]
    return Group(*parts)


def status_document(overview: InstallationOverview) -> dict[str, Any]:
    """Return the overview for ``-o json`` and ``-o yaml``."""
    installation = overview.installation
    return {
        "healthy": overview.healthy,
        "server": installation.server,
        "kubernetes": installation.server_version or None,
        "namespace": overview.scope,
        "systemNamespaces": list(installation.namespaces),
        "checks": [
            {
                "part": check.part,
                "state": str(check.severity),
                "summary": check.summary,
                "fix": check.fix or None,
            }
            for check in overview.checks
        ],
        "components": None
        if overview.through_api is not None
        else [
            {
                "kind": component.kind,
                "namespace": component.namespace,
                "name": component.name,
                "role": component.role,
                "image": component.image,
                "wanted": component.wanted,
                "ready": component.ready,
            }
            for component in installation.components
        ],
        "pools": {
            "count": len(overview.pools),
            "summary": summary(overview.pools),
            "findings": [
                {
                    "namespace": pool.namespace,
                    "name": pool.name,
                    "state": pool_state(pool),
                    "findings": [finding_document(finding) for finding in findings],
                }
                for pool, findings in overview.troubled
            ],
        },
        "notAllowedToRead": list(installation.denied),
    }
