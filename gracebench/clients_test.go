package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

// scripted is a server that reads one request after the other and gives each to script, which writes the answer; the
// connection is closed when script returns false.
func scripted(t *testing.T, script func(w io.Writer, n int, body string) bool) *rawClient {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		n := 0
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			in := bufio.NewReader(conn)
			for {
				r, err := http.ReadRequest(in)
				if err != nil {
					break
				}
				body, _ := io.ReadAll(r.Body)
				n++
				if !script(conn, n, string(body)) {
					break
				}
			}
			conn.Close()
		}
	}()
	c := &rawClient{dial: func() (net.Conn, error) { return net.Dial("tcp", l.Addr().String()) }}
	t.Cleanup(c.close)
	return c
}

func reply(w io.Writer, status int, headers, body string) {
	fmt.Fprintf(w, "HTTP/1.1 %d Something\r\nPid: 42\r\n%sContent-Length: %d\r\n\r\n%s", status, headers, len(body), body)
}

func TestClientKeepsItsConnection(t *testing.T) {
	c := scripted(t, func(w io.Writer, _ int, body string) bool { reply(w, 200, "", body); return true })
	for i, q := range []request{{body: "one"}, {body: "two", cut: 5}, {body: "three", cut: 10000}, {body: ""}} {
		a, err := c.do(q)
		if err != nil || a.pid != "42" {
			t.Fatalf("request %d: answer %+v, %v", i, a, err)
		}
		c.idle(time.Millisecond)
	}
	if c.dials() != 1 {
		t.Errorf("%d connections for 4 requests, want 1", c.dials())
	}
}

func TestClientDetectsLostRequests(t *testing.T) {
	for _, test := range []struct {
		name   string
		script func(w io.Writer, body string) bool
		want   string
	}{
		{"no answer", func(io.Writer, string) bool { return false }, "closed before the answer"},
		{"half of an answer's head", func(w io.Writer, _ string) bool { io.WriteString(w, "HTTP/1.1 200 OK\r\nPid: 4"); return false }, "closed before the answer"},
		{"half of an answer's body", func(w io.Writer, body string) bool {
			fmt.Fprintf(w, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(body), body[1:])
			return false
		}, "closed before the answer"},
		{"status", func(w io.Writer, body string) bool { reply(w, 502, "", body); return true }, "status 502"},
		{"another's answer", func(w io.Writer, _ string) bool { reply(w, 200, "", "other"); return true }, "wrong answer"},
		{"two answers", func(w io.Writer, body string) bool {
			var b strings.Builder
			reply(&b, 200, "", body)
			io.WriteString(w, b.String()+b.String())
			return true
		}, "wrong answer: more than was asked for"},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := scripted(t, func(w io.Writer, n int, body string) bool {
				if n == 2 {
					reply(w, 200, "", body)
					return true
				}
				return test.script(w, body)
			})
			_, err := c.do(request{body: "mine"})
			if err == nil || errorKind(err) != test.want {
				t.Fatalf("got %v, want %s", err, test.want)
			}
			// Never a second time by itself: the next request is another one, on a new connection.
			if _, err := c.do(request{body: "next"}); err != nil || c.dials() != 2 {
				t.Errorf("the next request: %v, with %d connections", err, c.dials())
			}
		})
	}
}

func TestClientCannotConnect(t *testing.T) {
	addr, err := freeAddr()
	if err != nil {
		t.Fatal(err)
	}
	c := &rawClient{dial: func() (net.Conn, error) { return net.Dial("tcp", addr) }}
	if _, err := c.do(request{body: "x"}); err == nil || errorKind(err) != "connection refused" {
		t.Errorf("got %v", err)
	}
}

func TestClosingIsAnnouncedOrIdleAndLosesNothing(t *testing.T) {
	c := scripted(t, func(w io.Writer, n int, body string) bool {
		switch n {
		case 1:
			reply(w, 200, "Connection: close\r\n", body)
			return false
		case 2:
			reply(w, 200, "", body)
			return false // while the client pauses
		}
		reply(w, 200, "", body)
		return true
	})
	for i, wantDials := range []int{1, 2, 3, 3} {
		if _, err := c.do(request{body: "x"}); err != nil {
			t.Fatalf("request %d: %v", i+1, err)
		}
		if c.dials() != wantDials {
			t.Fatalf("%d connections after request %d, want %d", c.dials(), i+1, wantDials)
		}
		c.idle(20 * time.Millisecond)
	}
}

func TestHTTP2ClientSpeaksHTTP2(t *testing.T) {
	s := httptest.NewUnstartedServer(handler(42))
	s.Config.Protocols = new(http.Protocols)
	s.Config.Protocols.SetUnencryptedHTTP2(true)
	s.Start()
	defer s.Close()
	c := newHTTP2Client(s.Listener.Addr().String(), nil)
	defer c.close()
	for range 3 {
		if a, err := c.do(request{body: "x", wait: time.Millisecond}); err != nil || a.pid != "42" || a.remote == "" {
			t.Fatalf("answer %+v, %v", a, err)
		}
	}
	if c.dials() != 1 {
		t.Errorf("%d connections, want 1", c.dials())
	}
}

func TestUserCountsByKindOfError(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	c := scripted(t, func(w io.Writer, n int, body string) bool {
		status := 200
		if n%3 == 0 {
			status = 503
		}
		if n == 30 {
			cancel()
		}
		fmt.Fprintf(w, "HTTP/1.1 %d Something\r\nContent-Length: %d\r\n\r\n%s", status, len(body), body)
		return true
	})
	u := newUser(0, c, new(target))
	u.run(ctx)
	if u.requests != 30 || u.lost["status 503"] != 10 || len(u.lost) != 1 {
		t.Errorf("%d requests, lost %v; want 30, 10 with status 503", u.requests, u.lost)
	}
}

func TestErrorKindKeepsWhatItDoesNotKnow(t *testing.T) {
	if got := errorKind(errors.New("something new")); got != "something new" {
		t.Errorf("got %q", got)
	}
}

func TestMissingProxyIsSkipped(t *testing.T) {
	if _, err := lookProxy("no-such-proxy"); !errors.Is(err, errMissing) {
		t.Errorf("got %v", err)
	}
}
