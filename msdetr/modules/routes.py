"""Another path through a sub-layer for some query groups."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .context import Context
from .residual import Residual


class Routed(Residual):
    """A sub-layer that some query groups pass in their own way.

    sublayer: what it is to all other groups; its parts are taken over, under their names.
    routes: of groups, by name, ``(sublayer, queries, context) -> queries``, where the sub-layer is this one, whose parts
    a route may share, and the queries and their context are those of the group alone.

    Raises InputError where a group reads one on another path.
    """

    def __init__(self, sublayer: Residual):
        nn.Module.__init__(self)
        self.inner, self.dropout, self.norm = sublayer.inner, sublayer.dropout, sublayer.norm
        self.routes = nn.ModuleDict()

    def forward(self, queries: Tensor, context: Context) -> Tensor:
        layout = context.layout
        leaving = [name for name in layout.groups if name in self.routes]
        if not leaving:
            return super().forward(queries, context)
        passed = {name: self.routes[name](self, layout.take(queries, [name]), context.only([name])) for name in leaving}
        if staying := [name for name in layout.groups if name not in leaving]:
            shared = super().forward(layout.take(queries, staying), context.only(staying))
            passed |= {name: shared[:, where] for name, where in layout.only(staying).groups.items()}
        return torch.cat([passed[name] for name in layout.groups], dim=1)
