"""A guarded optuna-dashboard: who may come in, what they may do, and what a browser may make of the answers.

    options.py    what it is started with
    server.py     a socket, waitress, the database
    guard.py      every request: host, path, sign-in, method; every answer: headers, plain errors
    hosts.py      names a request may come under (DNS rebinding)
    sign_in.py    tokens, passwords, sessions, a proxy's word; failures are counted
    passwords.py  the password file: scrypt
    answers.py    headers and the few pages of our own
    outages.py    whether a failed request failed for want of the database
"""

from storage.dashboard.options import DashboardOptions, take_token
from storage.dashboard.server import DashboardServer, make_dashboard_server, serve_dashboard

__all__ = ["DashboardOptions", "DashboardServer", "make_dashboard_server", "serve_dashboard", "take_token"]
