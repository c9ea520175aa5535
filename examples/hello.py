"""The smallest durable program: a step's result is recorded, and a crash after it does not run it again."""

from dbos import DBOS

DBOS(config={"name": "hello", "system_database_url": "sqlite:///hello.sqlite", "log_level": "WARNING"})


@DBOS.step()
def greet(name: str) -> str:
    return f"Hello, {name}!"


@DBOS.workflow()
def hello(name: str) -> str:
    return greet(name)


DBOS.launch()
print(hello("world"))
DBOS.destroy()
