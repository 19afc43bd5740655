module ctx_go

go 1.19
