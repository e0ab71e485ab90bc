//go:build !unix

package accept

import "net"

// Backlog returns nothing: what is completed cannot be told from what is not.
func (g *Gate) Backlog() (conns []net.Conn) { return nil }
