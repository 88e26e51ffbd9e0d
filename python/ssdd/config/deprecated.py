"""Settings that version 0.4 will not have, and what to use in place of each.

No table shows a use for them: docs/results/options has the comparison.
"""

from __future__ import annotations

from dataclasses import dataclass

from .settings import DistillConfig


@dataclass(frozen=True)
class Deprecation:
    """One setting of ``distill``, or one of its values."""

    field: str
    instead: str
    """What to use, as the end of a sentence."""
    value: str | None = None
    """The value that goes; None: the setting itself goes, so that only its default stays."""


DEPRECATED = (
    Deprecation("loss", "use 'mse', or the method 'clp-dd' for a cross-entropy", "cosine"),
    Deprecation("loss", "use 'mse', or the method 'clp-dd' for a cross-entropy", "cross-entropy"),
    Deprecation("targets", "use 'learned'", "tied"),
    Deprecation("support_view", "leave it out; distill.transforms has fixed views with targets of their own"),
    Deprecation("held_out", "leave it out; `ssdd evaluate` measures a finished set"),
    Deprecation("readout_every", "leave it out; `ssdd evaluate` measures a finished set"),
)


def deprecations(config: DistillConfig) -> list[str]:
    """Return one sentence per setting of ``config`` that version 0.4 will not have."""
    default, sentences = DistillConfig(), []
    for gone in DEPRECATED:
        value = getattr(config, gone.field)
        if value == gone.value if gone.value is not None else value != getattr(default, gone.field):
            sentences.append(
                f"distill.{gone.field} = {value!r} goes in version 0.4, as no table shows a use for it; {gone.instead}"
            )
    return sentences
