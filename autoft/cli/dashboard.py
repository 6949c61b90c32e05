"""`autoft dashboard`."""

import argparse
import sys

from autoft.cli.runtime import storage_url


def dashboard(args: argparse.Namespace) -> int:
    """Serve optuna-dashboard until Ctrl-C."""
    from storage.dashboard import make_dashboard_server

    with make_dashboard_server(storage_url(), host=args.host, port=args.port) as server:
        if args.host not in ("127.0.0.1", "localhost", "::1"):
            print(f"warning: anyone who reaches {args.host}:{args.port} can change and delete studies", file=sys.stderr)
        print(f"optuna-dashboard at {server.url} (Ctrl-C to stop)", file=sys.stderr, flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print("stopped", file=sys.stderr)
    return 0
