# Prints what is in the queue, as this member gives it.
import pika

login = pika.PlainCredentials("app", "change-me")
connection = pika.BlockingConnection(pika.ConnectionParameters("127.0.0.1", credentials=login))
channel = connection.channel()
left = channel.queue_declare("written", passive=True).method.message_count
# Nothing is acknowledged: all goes back when the connection is closed.
channel.basic_qos(prefetch_count=65535)
for method, _, body in channel.consume("written", inactivity_timeout=3):
    if method is None:
        break
    print(body.decode())
    left -= 1
    if left <= 0:
        break
connection.close()
