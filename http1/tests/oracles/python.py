"""Reads heads and responses as Python's own servers and clients do, on which others are built.

Each question is a letter, the length of what follows in four bytes, and that; each answer a line of JSON, whose texts have
one character for each byte.
"""

import http.client
import http.server
import io
import json
import struct
import sys


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, head):
        self.rfile = io.BytesIO(head)
        self.error = None
        self.client_address = ("192.0.2.2", 1)

    def send_error(self, code, message=None, explain=None):
        self.error = f"{code} {message}"

    def handle_expect_100(self):
        return True


class Socket:
    def __init__(self, text):
        self.text = text

    def makefile(self, mode):
        return io.BytesIO(self.text)


def request(head):
    handler = Handler(head)
    handler.raw_requestline = handler.rfile.readline(65537)
    while handler.raw_requestline == b"\r\n":
        handler.raw_requestline = handler.rfile.readline(65537)
    if not handler.parse_request():
        return {"error": handler.error or "no request"}
    left = handler.rfile.read()
    if left:
        return {"error": f"{len(left)} bytes are left"}
    return {"method": handler.command, "target": handler.path, "fields": handler.headers.items()}


def response(method, text):
    answer = http.client.HTTPResponse(Socket(text.lstrip(b"\r\n")), method=method)
    try:
        answer.begin()
        body = answer.read()
    except (http.client.HTTPException, ValueError) as error:
        return {"error": repr(error)}
    return {"status": answer.status, "fields": answer.getheaders(), "body": body.decode("latin-1")}


KINDS = {b"Q": request, b"G": lambda text: response("GET", text), b"H": lambda text: response("HEAD", text)}

while kind := sys.stdin.buffer.read(1):
    (length,) = struct.unpack("<I", sys.stdin.buffer.read(4))
    print(json.dumps(KINDS[kind](sys.stdin.buffer.read(length))), flush=True)
