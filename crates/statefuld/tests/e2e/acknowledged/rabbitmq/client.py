#!/usr/bin/python3
# Publishes 1, 2 … to a quorum queue by one member, and by the next when that one fails; those that were confirmed are in
# /data/acknowledged.
import itertools
import os
import time

import pika

os.chdir("/data")
acknowledged, refused = open("acknowledged", "a+", buffering=1), open("refused", "a+", buffering=1)


def last(file):
    file.seek(0)
    return max((int(line) for line in file), default=0)


def publish(member, numbers):
    login = pika.PlainCredentials("app", "change-me")
    parameters = pika.ConnectionParameters(
        f"rabbitmq-{member}.rabbitmq", credentials=login, heartbeat=4, socket_timeout=3, stack_timeout=6,
        blocked_connection_timeout=2)
    connection = pika.BlockingConnection(parameters)
    channel = connection.channel()
    channel.queue_declare("written", durable=True, arguments={"x-queue-type": "quorum"})
    channel.confirm_delivery()
    for number in numbers:
        try:
            # Returns when it was confirmed, and only then.
            properties = pika.BasicProperties(delivery_mode=2)
            channel.basic_publish("", "written", str(number).encode(), properties, mandatory=True)
        except BaseException:
            print(number, file=refused)
            raise
        print(number, file=acknowledged)
        connection.sleep(0.1)


numbers = itertools.count(max(last(acknowledged), last(refused)) + 1)
for member in itertools.cycle(range(3)):
    try:
        publish(member, numbers)
    except Exception as error:
        print(repr(error), flush=True)
        time.sleep(0.3)
