package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/facebookgo/grace"
	"github.com/facebookgo/grace/gracenet"
)

// A chat serves a protocol of its own on package grace: it answers each line with its pid, the number of lines on that
// connection, and the line. In a restart its connections move, each with what is known of it.
type chat struct {
	process grace.Process

	mu     sync.Mutex // guards what follows
	talks  map[*talk]bool
	leaves bool // all are to move
}

// A talk is a connection. Its goroutine owns it.
type talk struct {
	conn net.Conn

	Lines int    // that were answered
	Rest  []byte // has come, and is not answered
}

// serveChat serves until it is told to stop, or a successor has taken over.
func serveChat(addr string, ctl *control, logger *log.Logger) error {
	var n gracenet.Net
	inherited, err := n.Listen("tcp", addr)
	if err != nil {
		return err
	}
	l := grace.NewListener(inherited.(grace.Listener))
	ch := &chat{talks: make(map[*talk]bool)}
	ch.process = grace.Process{OnMove: ch.arrive, OnDrain: ch.leave, Logger: logger}
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go ch.serve(&talk{conn: conn})
		}
	}()
	ctl.send(message{Addr: l.Addr().String()})
	if err := ch.process.CloseParent(); err != nil {
		return err
	}
	return ch.process.Wait([]grace.Listener{l})
}

// serve answers until the client leaves, or the connection has moved.
func (ch *chat) serve(t *talk) {
	ch.mu.Lock()
	ch.talks[t] = true
	ch.mu.Unlock()
	defer func() {
		ch.mu.Lock()
		delete(ch.talks, t)
		ch.mu.Unlock()
		t.conn.Close()
	}()
	b := make([]byte, 4096)
	for {
		for {
			line, rest, whole := bytes.Cut(t.Rest, []byte("\n"))
			if !whole {
				break
			}
			t.Lines, t.Rest = t.Lines+1, rest
			if _, err := fmt.Fprintf(t.conn, "%d %d %s\n", os.Getpid(), t.Lines, line); err != nil {
				return
			}
		}
		if ch.leaving() {
			state, err := json.Marshal(t)
			if err == nil {
				err = ch.process.Move(t.conn, state)
			}
			if err != nil {
				ch.process.Logger.Print(err) // the client sees the end of its connection, which the row counts
			}
			return
		}
		n, err := t.conn.Read(b)
		t.Rest = append(t.Rest, b[:n]...)
		if err != nil && !ch.leaving() {
			return
		}
	}
}

func (ch *chat) leaving() bool {
	ch.mu.Lock()
	defer ch.mu.Unlock()
	return ch.leaves
}

// leave ends each Read that waits; it has read nothing.
func (ch *chat) leave() {
	ch.mu.Lock()
	defer ch.mu.Unlock()
	ch.leaves = true
	for t := range ch.talks {
		t.conn.SetReadDeadline(time.Now())
	}
}

// arrive serves a connection of the predecessor's.
func (ch *chat) arrive(conn net.Conn, state []byte) {
	t := &talk{conn: conn}
	if err := json.Unmarshal(state, t); err != nil {
		ch.process.Logger.Print(err)
		conn.Close()
		return
	}
	ch.serve(t)
}

// A chatClient sends lines: one as its request, and three at once where the handler of other kinds would wait. Every
// answer has to be to the line whose turn it is.
type chatClient struct {
	rawClient
	lines int
}

func (c *chatClient) do(q request) (answer, error) {
	if c.conn == nil {
		c.lines = 0
	}
	a, err := c.begin()
	if err == nil {
		err = c.talk(q, &a)
	}
	if err != nil {
		c.close()
	}
	return a, err
}

func (c *chatClient) talk(q request, a *answer) error {
	times := 1
	if q.wait > 0 {
		times = 3
	}
	if err := c.send([]byte(strings.Repeat(q.body, times)), q.cut, a); err != nil {
		return err
	}
	for range times {
		line, err := c.in.ReadString('\n')
		if err != nil {
			return err
		}
		c.lines++
		pid, said, _ := strings.Cut(line, " ")
		if want := strconv.Itoa(c.lines) + " " + q.body; said != want {
			return fmt.Errorf("%w: line %d", errWrong, c.lines)
		}
		a.pid = pid
	}
	if c.in.Buffered() > 0 {
		return fmt.Errorf("%w: more than was said", errWrong)
	}
	return nil
}
