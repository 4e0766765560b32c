#!/usr/bin/env python3
"""Subscribe to the results of edged devices and prove that none is missing and none came twice in effect. Copy freely.

Needs paho-mqtt and nothing else. A row's identity is (device, epoch, stream, seq); seq counts from 1 without a hole,
and a gap says which numbers will never come. MQTT may bring a message again: the same row is no second result.
"""

import argparse
import json
import math
import signal
import sys
import threading
import time
from collections import defaultdict

from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties


class Books:
    """What arrived, by (device, stream, epoch)."""

    def __init__(self):
        self.rows = defaultdict(dict)  # seq → row
        self.gaps = defaultdict(set)
        self.last = defaultdict(int)  # the highest number that anybody spoke of
        self.frames = {}  # (device, stream, source, key) → (epoch, seq)
        self.doubled = self.redelivered = 0

    def enter(self, data):
        """Enter one event."""
        account = (data["device"], data["stream"], data["epoch"])
        for row in data["rows"]:
            self.enter_row(account, row)
        for gap in data["gaps"]:
            self.gaps[account].update(range(gap["first"], gap["last"] + 1))
        self.last[account] = max(self.last[account], data["last"])
        before = data["predecessor"]
        if before and before["last"]:  # the epoch before this one ended there
            ended = (*account[:2], before["epoch"])
            self.last[ended] = max(self.last[ended], before["last"])

    def enter_row(self, account, row):
        """Enter one row: new, the same again, or a double."""
        seq, known = row["seq"], self.rows[account].get(row["seq"])
        self.redelivered += known == row
        self.doubled += known is not None and known != row  # two results under one number
        self.rows[account][seq] = row
        if row["key"] is not None:
            frame = (*account[:2], row["source"], row["key"])
            self.doubled += self.frames.setdefault(frame, (account, seq)) != (account, seq)  # one frame, two numbers

    def missing(self, account):
        """The numbers that neither came nor are explained."""
        return sorted(set(range(1, self.last[account] + 1)) - self.rows[account].keys() - self.gaps[account])

    def received(self):
        """How many different rows came."""
        return sum(len(rows) for rows in self.rows.values())


def subscribe(options, books):
    """Connect and enter whatever comes, until the client is stopped."""
    client = Client(CallbackAPIVersion.VERSION2, protocol=MQTTProtocolVersion.MQTTv5)
    if options.username:
        client.username_pw_set(options.username, options.password)
    topic = f"{options.root}/v1/{options.fleet}/{options.device}/result/+"
    session = Properties(PacketTypes.CONNECT)
    session.SessionExpiryInterval = 3600  # the broker keeps what comes while the connection is down

    def on_message(_client, _userdata, message):
        books.enter(json.loads(message.payload)["data"])

    client.on_connect = lambda *_: client.subscribe(topic, qos=1)
    client.on_message = on_message
    host, _, port = options.broker.removeprefix("mqtt://").partition(":")
    client.connect(host, int(port or 1883), properties=session)
    client.loop_start()
    return client


def main():
    """Listen until enough has come, time is up or somebody interrupts; then judge."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--broker", default="mqtt://localhost:1883")
    parser.add_argument("--root", default="edged")
    parser.add_argument("--fleet", default="+")
    parser.add_argument("--device", default="+")
    parser.add_argument("--username", default="")
    parser.add_argument("--password", default="")
    parser.add_argument("--expect", type=int, default=0, help="end when so many rows came; fewer are a failure")
    parser.add_argument("--timeout", type=float, default=math.inf, help="end after so many seconds")
    parser.add_argument("--settle", type=float, default=1.0, help="listen on for so long after the last expected row")
    parser.add_argument("--strict", action="store_true", help="a row that came again unchanged is a failure too")
    options = parser.parse_args()
    books, ended = Books(), threading.Event()
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, lambda *_: ended.set())
    until = time.monotonic() + options.timeout
    client = subscribe(options, books)
    while not ended.wait(0.05) and time.monotonic() < until:
        if options.expect and books.received() >= options.expect:
            ended.wait(options.settle)
            break
    client.disconnect()
    client.loop_stop()
    return judge(options, books)


def judge(options, books):
    """Print the summary; 0 when all is well."""
    gone = {account: books.missing(account) for account in list(books.last)}
    for account in sorted(books.last):
        device, stream, epoch = account
        counts = f"rows={len(books.rows[account])} gaps={len(books.gaps[account] - books.rows[account].keys())}"
        print(f"{device}/{stream} epoch {epoch}: {counts} missing={len(gone[account])} {gone[account][:10] or ''}")
    rows, missing = books.received(), sum(map(len, gone.values()))
    print(f"subscriber: rows={rows} missing={missing} doubled={books.doubled} redelivered={books.redelivered}")
    bad = missing or books.doubled or rows < options.expect or (options.strict and books.redelivered)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
