"""Attribution across task queues: whoever enqueues a task is who its calls go to. One module per queue."""
