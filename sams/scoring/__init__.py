"""Scoring: AlpacaEval 2 and MT-Bench by the unmodified packages, their judge, the difficulty table."""
