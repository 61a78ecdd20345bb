"""What a hostile submission does: in pass_at_k of assignment 1, unless it says otherwise. The right value of pass_at_k is `RIGHT`."""

RIGHT = "1 - comb(n - c, k) / comb(n, k)"

# Each must fail inside of the fences, with an exception of any kind. MARK is a file of the grader's machine that must not come into being
# (another one for each attempt), PLANTED one that everybody may read, PORT one that somebody listens on, SOCKET and ABSTRACT are UNIX
# sockets, HERE and ROOT folders of the project.
ATTEMPTS = {
    "a program": "subprocess.run(['touch', MARK], check=True)",
    "a program of Python's": "subprocess.run([sys.executable, '-c', f'open({MARK!r}, \"w\")'], check=True)",
    "a program by the back door": "os.execv('/bin/touch', ['touch', MARK])",
    "a shell": "assert os.system('touch ' + MARK) == 0",
    "a shell from machine code": "assert ctypes.CDLL(None).system(b'touch ' + MARK.encode()) == 0",
    "compiled code writes outside": "import torch; torch.save(torch.ones(1), MARK)",
    "other compiled code does": "import torch; from safetensors.torch import save_file; save_file({'x': torch.ones(1)}, MARK)",
    "compiled code reads outside": "import torch; torch.from_file(ROOT + '/rlvr/evaluate.py', size=9, dtype=torch.uint8)",
    "a file outside": "open(MARK, 'w')",
    "a folder outside": "os.mkdir(MARK)",
    "a file moved outside": "os.rename('adapter.py', MARK)",
    "a link to a file outside": "os.symlink(MARK, 'x'); open('x', 'w')",
    "a file beside its folder": "open('/x', 'w')",
    "a package changed": "open(os.__file__, 'a')",
    "the runner changed": "open('/runner.py', 'a')",
    "what was handed in changed": "open('/handed-in/adapter.py', 'a')",
    "a device": "open('/dev/x', 'w')",
    "the network": "socket.create_connection(('127.0.0.1', PORT), 1)",
    "a name looked up": "socket.getaddrinfo('example.org', 80)",
    "a UNIX socket": "socket.socket(socket.AF_UNIX).connect(SOCKET)",
    "an abstract UNIX socket": "socket.socket(socket.AF_UNIX).connect(ABSTRACT)",
    "a file read": "read(PLANTED)",
    "the solutions imported": "sys.path.append(ROOT); import rlvr",
    "the reference imported": "sys.path.append(ROOT); from tutorials.assignments.reference.a1 import adapter",
    "the solutions read": "open(ROOT + '/rlvr/evaluate.py')",
    "the tests edited": "open(HERE + '/a1/tests.py', 'a')",
    "the grader's folder listed": "assert os.listdir(HERE)",
    "a variable of the grader": "os.environ['SECRET']",
    "the command of the grader": "read(f'/proc/{GRADER}/cmdline')",
    "another process": "assert processes()",
    "the memory of the grader": "open(f'/proc/{GRADER}/mem', 'rb')",
    "a signal to the grader": "os.kill(GRADER, 0)",
    "a signal to everybody": "os.kill(-1, 0)",
    "a debugger on another": "assert ctypes.CDLL(None).ptrace(16, GRADER, 0, 0) == 0",
    "a new root": "assert ctypes.CDLL(None).setuid(0) == 0 and os.getuid() == 0",
    "a thousand processes": "forks()",
    "a thousand threads": "[threading.Thread(target=time.sleep, args=(0.5,), daemon=True).start() for _ in range(1000)]",
    "one big file": "open('big', 'wb').write(bytes(2**26))",
    "a gigabyte in many files": "[open(f'f{i}', 'wb').write(bytes(2**24)) for i in range(64)]",
    "ten gigabytes of memory": "bytearray(10**10)",
}
# Those that work on any Linux where nothing holds the code, whoever grades, and leave no harm behind.
WORKS_UNFENCED = {
    "a program", "a program of Python's", "a shell", "a shell from machine code", "a file outside", "a folder outside",
    "a link to a file outside", "a file read", "the network", "a UNIX socket", "an abstract UNIX socket", "the command of the grader",
    "another process",
}  # fmt: skip
ATTEMPT = """
import ctypes, os, socket, subprocess, sys, threading, time

def read(path):
    with open(path, 'rb') as file: return file.read()
def processes():
    others = [p for p in os.listdir('/proc') if p.isdigit() and int(p) not in (1, os.getpid())]
    return ['/proc/' + p for p in others]
def forks():
    for _ in range(1000):
        if os.fork() == 0:
            time.sleep(0.5)
            os._exit(0)

def pass_at_k(n, c, k):
    worked = []
    for name in list(ATTEMPTS):  # each once
        try:
            exec(ATTEMPTS.pop(name), globals() | {"__builtins__": __builtins__, "MARK": f"{MARK}{len(ATTEMPTS)}"})
        except BaseException:
            continue
        worked.append(name)
    assert not worked, ', '.join(worked)
    return RIGHT_VALUE
"""

REPLY = """
import json, os, sys, time
def write(line):
    for fd in range(3, 30):
        try:
            os.write(fd, line)
        except OSError:
            pass
"""
# What is written into the grader's pipes, and how often, before the function returns or goes on for ever.
FLOODS = {
    "replies without end": "while True: write(b'{\"id\": 1, \"value\": 0.5}' + bytes([10]))",
    "a line without end": "while True: write(b'[' * 2**16)",
    "a reply of lists in lists": "write(b'[' * 10**6 + b']' * 10**6 + bytes([10]))",
    "a reply of a million lists": "write(b'{\"id\": 2, \"value\": [' + b'[],' * 10**6 + b'[]]}' + bytes([10])); time.sleep(9)",
    "a reply of a million dicts": "write(b'{\"id\": 2, \"value\": [' + b'{\"a\":{}},' * 4 * 10**5 + b'1]}' + bytes([10])); time.sleep(9)",
    "a reply of a million numbers": "write(b'{\"id\": 2, \"value\": [' + b'1.5,' * 10**6 + b'1]}' + bytes([10])); time.sleep(9)",
    "a huge number": "write(b'{\"id\": 2, \"value\": ' + b'9' * 10**6 + b'}' + bytes([10])); time.sleep(9)",
    "a reply that is no text": "write(b'{\"id\": 2, \"value\": \"' + bytes([255, 254, 0, 200]) + b'\"}' + bytes([10])); time.sleep(9)",
    "a big forged tensor": "write(b'{\"id\":2,\"value\":{\"tensor\":[[' + b'1,'*9**5 + b'1]],\"shape\":[1],\"dtype\":\"x\"}}\\n'); time.sleep(9)",
    "an error that is none": "write(b'{\"id\": 2, \"error\": {\"type\": ' + b'[1,' * 500 + b'1' + b']' * 500 + b'}}\\n'); time.sleep(9)",
    "an error as long as a book": "write(b'{\"id\": 2, \"error\": {\"type\": \"' + b'x' * 10**6 + b'\", \"bases\": 3}}\\n'); time.sleep(9)",
    "gigabytes of print": "while True: print('spam' * 10**6)",
    "gigabytes of errors": "while True: os.write(2, bytes(10**6))",
    "escape codes": "print(chr(27) + '[2J' + chr(27) + ']0;x' + chr(7)); os.write(2, bytes([255, 254, 155, 7])); return 0.5",
    "a process that does not read": "write(b'{\"id\": 2, \"value\": 0.5}\\n'); time.sleep(9)",
    "a closed stderr": "os.close(2); os.close(1); return 0.5",
}
