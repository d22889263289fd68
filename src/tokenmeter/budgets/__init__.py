"""Budgets: what calls may cost, use or number, and how that is held without ever overshooting."""

from tokenmeter.budgets.alerts import Alert, AlertTarget
from tokenmeter.budgets.budgets import Budgets
from tokenmeter.budgets.definitions import Change
from tokenmeter.budgets.delivery import AlertQueue
from tokenmeter.budgets.grants import Grant
from tokenmeter.budgets.policy import Budget
from tokenmeter.budgets.status import Balance

__all__ = ["Alert", "AlertQueue", "AlertTarget", "Balance", "Budget", "Budgets", "Change", "Grant"]
