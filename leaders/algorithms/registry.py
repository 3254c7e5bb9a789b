"""Every leader by its name."""

from __future__ import annotations

from leaders.algorithms.bchg import BCHG
from leaders.algorithms.bi_ac import BiAC
from leaders.algorithms.cmaes import CMAES
from leaders.algorithms.exact_gradient import ExactGradient
from leaders.algorithms.hpgd import HPGD
from leaders.algorithms.mbhg import MBHG
from leaders.algorithms.naive_pgd import NaivePGD
from leaders.algorithms.random_search import RandomSearch
from leaders.algorithms.sobirl import SoBiRL
from leaders.algorithms.zeroth_order import ZerothOrder
from leaders.leader import Leader

LEADERS: dict[str, type[Leader]] = {
    leader.name: leader
    for leader in (BCHG, MBHG, NaivePGD, HPGD, SoBiRL, BiAC, ExactGradient, ZerothOrder, CMAES, RandomSearch)
}
