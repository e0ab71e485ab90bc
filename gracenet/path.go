package gracenet

import (
	"encoding/json"
	"errors"
	"io/fs"
	"net"
	"os"
	"sync"
	"syscall"

	"github.com/facebookgo/grace/internal/handoff"
)

// paths says which file the path of each unix socket led to when it was bound. The
// number of a file is not used again while a socket is bound to it, in whatever process.
var paths struct {
	mu    sync.Mutex // held while a path is replaced, too
	files map[string]fileID
}

// pathsState is the name of the state that tells a successor.
const pathsState = "gracenet.paths"

// boundPaths returns paths.files, with what the predecessor knows. The caller holds
// paths.mu.
func boundPaths() map[string]fileID {
	if paths.files == nil {
		paths.files = map[string]fileID{}
		g := handoff.Self()
		if state := g.State(pathsState); state != nil {
			json.Unmarshal(state, &paths.files) // what is not known is taken to be as it was
		}
		g.Provide(pathsState, func() []byte {
			paths.mu.Lock()
			defer paths.mu.Unlock()
			state, _ := json.Marshal(paths.files)
			return state
		})
	}
	return paths.files
}

// remember notes what the path of a socket that was just bound leads to. The caller holds
// paths.mu.
func remember(path string) {
	files := boundPaths()
	id, err := identify(path)
	if err != nil {
		delete(files, path) // an abstract one has no file
	} else {
		files[path] = id
	}
}

// reachable reports whether an inherited socket can be reached by its path, if it has
// one. The path of an activated socket is systemd's to look after.
func reachable(s *handoff.Socket) bool {
	a, ok := s.Addr().(*net.UnixAddr)
	if !ok || a.Name == "" || a.Name[0] == '@' || s.Activated {
		return true
	}
	id, err := identify(a.Name)
	if err != nil {
		return !errors.Is(err, fs.ErrNotExist)
	}
	paths.mu.Lock()
	defer paths.mu.Unlock()
	was, known := boundPaths()[a.Name]
	return !known || was == id
}

// removeStale removes the file of a unix socket that nobody has any more, and
// reports whether it did.
func removeStale(path string) bool {
	before, err := os.Lstat(path)
	if err != nil || before.Mode()&fs.ModeSocket == 0 || !stale(path) {
		return false
	}
	// Another process may have replaced it meanwhile.
	after, err := os.Lstat(path)
	return err == nil && os.SameFile(before, after) && os.Remove(path) == nil
}

// stale reports whether no socket is bound to the path. One that is, but does not
// listen yet, refuses connections of its own type, and says to others that they are of
// the wrong type (EPROTOTYPE); where a system refuses those too (gVisor), its own type
// is what tells that it is there.
func stale(path string) bool {
	refused := false
	for _, network := range []string{"unix", "unixpacket", "unixgram"} {
		c, err := net.Dial(network, path)
		switch {
		case err == nil:
			c.Close()
			return false
		case errors.Is(err, syscall.ECONNREFUSED):
			refused = true
		case errors.Is(err, syscall.EPROTONOSUPPORT): // macOS has no unixpacket
		default:
			return false
		}
	}
	return refused
}

// A unixgramConn removes its path when it is closed, unless a successor has it.
type unixgramConn struct {
	*net.UnixConn
	socket *handoff.Socket
}

func (c *unixgramConn) Close() error {
	if path := c.LocalAddr().String(); path != "" && path[0] != '@' && !c.socket.LeavesPath() {
		// As net.UnixListener does: first the path, then the socket.
		if raw, err := c.SyscallConn(); err == nil && raw.Control(func(uintptr) {}) == nil {
			os.Remove(path)
		}
	}
	return c.UnixConn.Close()
}
