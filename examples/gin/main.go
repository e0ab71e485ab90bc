// A gin router, served by gracehttp.
package main

import (
	"flag"
	"log"
	"net/http"
	"os"

	"github.com/facebookgo/grace/gracehttp"
	"github.com/gin-gonic/gin"
)

func main() {
	addr := flag.String("addr", ":8080", "Address to listen on.")
	flag.Parse()

	gin.SetMode(gin.ReleaseMode)
	router := gin.New()
	router.POST("/who", func(c *gin.Context) {
		c.String(http.StatusOK, "%d\n", os.Getpid())
	})
	// Instead of router.Run(*addr).
	if err := gracehttp.Serve(&http.Server{Addr: *addr, Handler: router}); err != nil {
		log.Fatal(err)
	}
}
