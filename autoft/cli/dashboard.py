"""`autoft dashboard`."""

import argparse
import getpass
import sys

from autoft.cli.runtime import storage_url
from autoft.errors import ConfigError


def dashboard(args: argparse.Namespace) -> int:
    """Serve optuna-dashboard until Ctrl-C, or with --make-password write a line of a password file."""
    if args.make_password is not None:
        return _make_password(args)
    from storage.dashboard import DashboardOptions, make_dashboard_server, take_token
    from storage.dashboard.options import parse_network
    from storage.dashboard.passwords import read_password_file

    options = DashboardOptions(
        allow_edit=args.allow_edit,
        require_sign_in=args.require_sign_in,
        allowed_hosts=tuple(args.allowed_host),
        token=take_token(),  # before anything is started that would inherit it
        users=read_password_file(args.password_file) if args.password_file else {},
        proxies=tuple(map(parse_network, args.proxy)),
        proxy_header=args.trust_proxy_header,
        artifacts=args.artifacts,
        access_log=_say if args.access_log else None,
    )
    with make_dashboard_server(storage_url(), host=args.host, port=args.port, options=options) as server:
        if server.sign_in_url is not None and not sys.stderr.isatty():
            raise ConfigError(
                "visitors must sign in, and there is no terminal to show a token on, only a log; set AUTOFT_DASHBOARD_TOKEN_FILE, or give --password-file"
            )
        _say(f"optuna-dashboard at {server.sign_in_url or server.url} ({_kind(args, server.asks_sign_in)}; Ctrl-C to stop)")
        if server.reaches_others and not args.proxy:
            _say("note: the connection is not encrypted; on a network you do not trust put a proxy with TLS in front (docs/dashboard.md)")
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            _say("stopped")
    return 0


def _kind(args: argparse.Namespace, asks_sign_in: bool) -> str:
    return f"{'visitors can edit' if args.allow_edit else 'read-only'}, {'sign-in needed' if asks_sign_in else 'no sign-in on this machine'}"


def _make_password(args: argparse.Namespace) -> int:
    from storage.dashboard.passwords import password_line, store_password

    password = _read_password(args.make_password)
    if args.password_file is None:
        print(password_line(args.make_password, password))
    else:
        store_password(args.password_file, args.make_password, password)
        _say(f"{args.password_file}: password of {args.make_password} set")
    return 0


def _read_password(user: str) -> str:
    """From the terminal, twice; else the first line of stdin."""
    if not sys.stdin.isatty():
        return sys.stdin.readline().rstrip("\r\n")
    password = getpass.getpass(f"password of {user}: ")
    if getpass.getpass("once more: ") != password:
        raise ConfigError("--make-password: the two are not the same")
    return password


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
