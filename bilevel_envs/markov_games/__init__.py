"""Two-player games in PettingZoo's forms: `toy_markov_game_v0`, `bilevel_lqr_v0`."""
