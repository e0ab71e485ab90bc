// The chat of ../chat over WebSockets, whose clients stay connected over restarts too. It
// needs a WebSocket library that works on a plain net.Conn, so that the state of a
// connection is just the bytes of a frame that has not come whole.
package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"sync"
	"time"

	"github.com/facebookgo/grace"
	"github.com/facebookgo/grace/gracehttp"
	"github.com/gobwas/ws"
)

func main() {
	addr := flag.String("addr", ":8080", "Address to listen on.")
	flag.Parse()

	ch := &chat{clients: map[*client]bool{}, said: map[string][]string{}}
	err := gracehttp.ServeWithOptions(
		[]*http.Server{{Addr: *addr, Handler: ch}},
		gracehttp.OnDrain(ch.depart),
		gracehttp.OnMove(ch.arrive),
		gracehttp.DrainTimeout(24*time.Hour), // for those that the successor does not take
	)
	if err != nil {
		log.Fatal(err)
	}
}

// ServeHTTP serves a client, whose first message names its room and itself.
func (ch *chat) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	conn, buffered, _, err := ws.UpgradeHTTP(r, w)
	if err != nil {
		return // it has answered
	}
	come, _ := buffered.Peek(buffered.Reader.Buffered())
	ch.add(&client{conn: conn, Unsaid: bytes.Clone(come)})
}

type chat struct {
	mu      sync.Mutex // guards what follows, and is held while something is said
	clients map[*client]bool
	said    map[string][]string // in each room, of late, in this process
	departs int                 // how often all were to move
}

// A client is a connection and its state. What has no lock is owned by its goroutine.
type client struct {
	conn  net.Conn
	stays int // of chat.departs, the one in which it could not move; guarded by chat.mu

	Room, Name string
	Unsaid     []byte // frames that have come, the last perhaps in part
}

// add serves a client until it leaves or has moved.
func (ch *chat) add(c *client) {
	ch.mu.Lock()
	ch.clients[c] = true
	for _, text := range ch.said[c.Room] {
		c.hear(text)
	}
	ch.mu.Unlock()
	defer func() {
		ch.mu.Lock()
		delete(ch.clients, c)
		ch.mu.Unlock()
	}()

	b := make([]byte, 4096)
	for {
		for ch.say(c) {
		}
		if departure, ok := ch.moves(c); ok {
			state, _ := json.Marshal(c)
			err := gracehttp.Move(c.conn, state)
			if err == nil {
				return
			}
			if errors.Is(err, grace.ErrStopping) {
				c.conn.Close()
				return
			}
			ch.stay(c, departure) // nobody takes it: it is served here
			continue
		}
		n, err := c.conn.Read(b)
		c.Unsaid = append(c.Unsaid, b[:n]...)
		if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			c.conn.Close()
			return
		}
	}
}

// say says a message of the client's to the room. It reports false if there is none, or if
// it is for the successor to say.
func (ch *chat) say(c *client) bool {
	ch.mu.Lock()
	defer ch.mu.Unlock()
	if ch.departs != c.stays {
		return false
	}
	frame, whole, err := c.frame()
	if err != nil || frame.Header.OpCode == ws.OpClose {
		c.write(ws.NewCloseFrame(nil))
		c.conn.Close() // which ends its Read
		return false
	}
	if !whole {
		return false
	}
	if frame.Header.OpCode == ws.OpPing {
		c.write(ws.NewPongFrame(frame.Payload))
	}
	if frame.Header.OpCode != ws.OpText {
		return true
	}
	text := c.Name + ": " + string(frame.Payload)
	if c.Name == "" {
		if _, err := fmt.Sscan(string(frame.Payload), &c.Room, &c.Name); err != nil {
			c.conn.Close()
			return false
		}
		text = c.Name + " is here"
	}
	said := append(ch.said[c.Room], text)
	ch.said[c.Room] = said[max(0, len(said)-1000):]
	for other := range ch.clients {
		if other.Room == c.Room {
			other.hear(text)
		}
	}
	return true
}

// frame takes the next frame from what has come, if it is there as a whole.
func (c *client) frame() (f ws.Frame, whole bool, err error) {
	come := bytes.NewReader(c.Unsaid)
	f.Header, err = ws.ReadHeader(come)
	switch {
	case err == io.EOF || err == io.ErrUnexpectedEOF:
		return ws.Frame{}, false, nil
	case err != nil:
		return f, false, err
	case !f.Header.Fin || !f.Header.Masked || f.Header.Length > 1<<16:
		return f, false, errors.New("a frame that a chat has no use for")
	case int64(come.Len()) < f.Header.Length:
		return ws.Frame{}, false, nil
	}
	f.Payload = make([]byte, f.Header.Length)
	io.ReadFull(come, f.Payload)
	ws.Cipher(f.Payload, f.Header.Mask, 0)
	c.Unsaid = bytes.Clone(c.Unsaid[len(c.Unsaid)-come.Len():])
	return f, true, nil
}

func (c *client) hear(text string) { c.write(ws.NewTextFrame([]byte(text))) }

func (c *client) write(f ws.Frame) {
	c.conn.SetWriteDeadline(time.Now().Add(5 * time.Second))
	b, err := ws.CompileFrame(f)
	if err == nil {
		_, err = c.conn.Write(b)
	}
	if err != nil {
		c.conn.Close() // which ends its Read
	}
}

// depart has all clients move, those too that are about to connect. A Read that waits
// ends, and has read nothing.
func (ch *chat) depart() {
	ch.mu.Lock()
	defer ch.mu.Unlock()
	ch.departs++
	for c := range ch.clients {
		c.conn.SetReadDeadline(time.Now())
	}
}

func (ch *chat) moves(c *client) (departure int, ok bool) {
	ch.mu.Lock()
	defer ch.mu.Unlock()
	return ch.departs, ch.departs != c.stays
}

// stay keeps a client that could not move in this departure.
func (ch *chat) stay(c *client, departure int) {
	ch.mu.Lock()
	defer ch.mu.Unlock()
	c.stays = departure
	if departure == ch.departs {
		c.conn.SetReadDeadline(time.Time{})
	}
}

// arrive is depart in the successor.
func (ch *chat) arrive(conn net.Conn, state []byte) {
	c := &client{conn: conn}
	if err := json.Unmarshal(state, c); err != nil {
		log.Print(err)
		conn.Close()
		return
	}
	ch.add(c)
}
