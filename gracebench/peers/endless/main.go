// Command endless restarts with github.com/fvbock/endless. SIGHUP restarts, SIGTERM stops.
package main

import (
	"log"
	"os"

	"github.com/fvbock/endless"

	"peers/echo"
)

func main() {
	if err := endless.ListenAndServe(os.Args[1], echo.Handler); err != nil {
		log.Print(err) // also after a restart
	}
}
