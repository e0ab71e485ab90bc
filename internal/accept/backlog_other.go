//go:build !unix

package accept

import "net"

// Backlog returns nothing: what is completed cannot be told from what is not.
func (l *Listener) Backlog() (conns []net.Conn) { return nil }
