"""Save a picture of a run's SwanLab page, as README shows it: tests/swanlab.png.

Needs Chromium beside the pinned environment (Debian: apt-get install chromium; elsewhere name it
in CHROMIUM). It starts `swanlab watch` on the run's swanlog folder and ends it again.

    bash run.sh demo && .venv-cpu/bin/python tests/swanlab_screenshot.py outputs-demo/swanlog
"""

import argparse
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request


def main(args):
    watch = [sys.executable, "-m", "swanlab", "watch", args.swanlog, "--port", str(args.port)]
    server = subprocess.Popen(watch, stdout=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{args.port}/experiment/{args.experiment}/chart"
    try:
        wait_for(url, server)
        take_picture(url, args.output, args.height)
    finally:
        server.terminate()
        server.wait()
    print(f"{args.output}: {os.path.getsize(args.output) / 1000:.0f} KB")


def wait_for(url, server, seconds=60):
    """Return when the page answers; end where the server has ended, or after `seconds`."""
    for _ in range(2 * seconds):
        if server.poll() is not None:
            break
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except (urllib.error.URLError, TimeoutError):
            time.sleep(0.5)
    sys.exit(f"error: no answer from {url}")


def take_picture(url, output, height):
    """Open a page in headless Chromium, give its scripts 15 seconds, and save what it shows."""
    chromium = os.environ.get("CHROMIUM", "chromium")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    flags += [f"--window-size=1300,{height}", "--virtual-time-budget=15000"]
    flags += [f"--screenshot={os.path.abspath(output)}", url]
    subprocess.run([chromium, *flags], check=True, timeout=120, stderr=subprocess.DEVNULL)


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("swanlog", help="the folder OUTPUT_DIR/swanlog")
    parser.add_argument("--output", default="tests/swanlab.png", help="the picture")
    parser.add_argument("--experiment", type=int, default=1, help="1: training, 2: evaluation")
    parser.add_argument("--height", type=int, default=900, help="of the page, in pixels")
    parser.add_argument("--port", type=int, default=5096, help="a free port")
    return parser.parse_args()


if __name__ == "__main__":
    main(parse_arguments())
