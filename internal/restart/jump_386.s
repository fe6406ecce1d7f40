#include "textflag.h"

// func jump(stack uintptr, p *plan, entry uintptr)
TEXT ·jump(SB), NOSPLIT|NOFRAME, $0-12
	MOVL	stack+0(FP), AX
	MOVL	p+4(FP), BX
	MOVL	entry+8(FP), CX
	SUBL	$16, AX
	MOVL	AX, SP
	MOVL	BX, 0(SP)
	MOVL	CX, 8(SP)
	CALL	·discard(SB)
	MOVL	8(SP), CX
	LEAL	16(SP), SP
	JMP	CX
