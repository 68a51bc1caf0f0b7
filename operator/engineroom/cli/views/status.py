"""The installation at a glance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.text import Text

from engineroom.cli.connections.policies import rate_limits
from engineroom.cli.views.diagnose import Check, Severity, checks, pool_findings, pool_state
from engineroom.cli.views.explain import finding_document, findings_list
from engineroom.cli.views.output_formats import Indent, table, word
from engineroom.cli.views.top import by_pool, summary

if TYPE_CHECKING:
    from datetime import datetime

    from rich.console import RenderableType

    from engineroom.cli.connections.model import Document, Installation, Pod, Pool
    from engineroom.cli.views.diagnose import Finding


@dataclass(frozen=True, slots=True)
class Overview:
    """All that ``status`` shows; ``scope`` is the namespace looked at, None for all."""

    installation: Installation
    pools: tuple[Pool, ...]
    pods: tuple[Pod, ...]
    scope: str | None
    now: datetime
    program: str
    #: RateLimitPolicies of the scope.
    policies: tuple[Document, ...] = ()
    #: What the API process told of itself, in place of the parts of the installation.
    through_api: tuple[Check, ...] | None = None

    @property
    def checks(self) -> tuple[Check, ...]:
        """The parts of the installation, and the pools as one of them."""
        if self.through_api is not None:
            return (*self.through_api, self._pools())
        parts = (*checks(self.installation, self.pools), self._pools())
        return (*parts, rate_limits(self.policies, self.program)) if self.policies else parts

    def _pools(self) -> Check:
        where = f"in namespace {self.scope}" if self.scope else "in all namespaces"
        if not self.pools:
            return Check("pools", Severity.OK, f"none {where}")
        bad = sum(
            any(finding.severity is Severity.PROBLEM for finding in findings)
            for _, findings in self.troubled
        )
        if bad:
            return Check("pools", Severity.PROBLEM, f"{summary(self.pools)}; {bad} with problems")
        return Check("pools", Severity.OK, f"{summary(self.pools)}")

    @property
    def troubled(self) -> tuple[tuple[Pool, tuple[Finding, ...]], ...]:
        """The pools with findings, worst first."""
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


def status_text(overview: Overview) -> RenderableType:
    """One line a part, then each pool that needs attention with its fix."""
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


def status_document(overview: Overview) -> dict[str, Any]:
    """The same for programs."""
    installation = overview.installation
    return {
        "healthy": overview.healthy,
        "server": installation.server,
        "kubernetes": installation.server_version or None,
        "namespace": overview.scope,
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
